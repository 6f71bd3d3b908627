"""Data sets at a URI, copied to this machine before they are read.

The copy lies in the cache, keyed by the names, sizes and times of the remote files. It is made once
per machine, by one process, and appears only when complete.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from raycnn import io
from raycnn.data.sources.base import Source, Split
from raycnn.errors import DataError, EnvironmentUnavailable, StorageUnavailable, first_line
from raycnn.filesystem import RemoteFile, RemoteFolder, base_name, filesystem_errors
from raycnn.paths import cache_folder
from raycnn.shape import Shape

THREADS = 16  # files that are copied at once
LOCK_S = 3600  # the longest that another process may take to copy the same files

log = logging.getLogger("raycnn")


class RemoteSource:
    """A source whose remote files are copied to the cache on first use."""

    def __init__(self, uri: str, build: Callable[[Path], Source], names: Sequence[str] | None):
        """Create the source that `build` makes of a local copy of `names`, or of all files."""
        self.uri, self.build, self.names = uri, build, names

    @cached_property
    def source(self) -> Source:
        return self.build(copy_files(self.uri, self.names))

    @property
    def shape(self) -> Shape:
        return self.source.shape

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def files(self) -> Sequence[Path | str]:
        return self.source.files()

    def read(self) -> dict[str, Split]:
        return self.source.read()

    def __getattr__(self, name: str) -> Any:
        """Return another attribute of the wrapped source."""
        if name.startswith("_") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


def copy_files(uri: str, names: Sequence[str] | None = None) -> Path:
    """Copy the files below a URI, or those named, and return the local folder.

    Raises DataError if they cannot be read, and EnvironmentUnavailable if they do not fit.
    """
    try:
        remote = RemoteFolder.open(uri)
        files = _list_files(remote, names)
        identity = json.dumps([uri, sorted(files)])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        folder = cache_folder() / "downloads" / key / base_name(uri)
        if not folder.exists():
            _copy(remote, files, folder)
    except filesystem_errors() as error:
        raise DataError(f"cannot read the data: {uri}: {first_line(error)}") from None
    return folder


def _list_files(remote: RemoteFolder, names: Sequence[str] | None) -> list[RemoteFile]:
    if names is None:
        if files := remote.files():
            return files
        raise FileNotFoundError("there are no files")
    files = [file for name in names if (file := remote.file(name))]
    if not files:
        raise FileNotFoundError(f"{', '.join(names)} not found")
    return files  # the wrapped source reports those that are missing


def _copy(remote: RemoteFolder, files: list[RemoteFile], folder: Path) -> None:
    size = sum(file.size for file in files)
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise StorageUnavailable(
            f"cannot use the cache {parent}: {error}; set RAYCNN_CACHE to another folder"
        ) from None
    if size > free:
        raise EnvironmentUnavailable(
            f"{remote.uri} has {size / 1e6:,.1f} MB of files, and {parent} has "
            f"{free / 1e6:,.1f} MB free; set RAYCNN_CACHE to another folder"
        )
    busy = f"another process has been copying {remote.uri} for {LOCK_S} s"
    with io.lock(parent / ".lock", busy, LOCK_S):
        if folder.exists():
            return
        log.info(f"copying {len(files):,} files, {size / 1e6:,.1f} MB, from {remote.uri}")
        with io.atomic_folder(folder) as copy, ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda file: _copy_file(remote, file, copy), files))


def _copy_file(remote: RemoteFolder, file: RemoteFile, folder: Path) -> None:
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    remote.download(file.name, target)
    os.utime(target, ns=(file.modified_ns, file.modified_ns))
