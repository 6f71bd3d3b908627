"""Remote folders by URI, on any file system: by pyarrow, or by fsspec if pyarrow lacks it.

Local files are written with io.py; paths.py has the folders of data sets and caches.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from raycnn.errors import StorageUnavailable

if TYPE_CHECKING:
    from pyarrow import fs

SECRET = re.compile(r"key|secret|token|password|credential|signature|^sig$", re.IGNORECASE)
CHUNK = 8 << 20  # bytes per read
FLUSH = 64 << 20  # maximum number of bytes that a stream buffers before it is flushed
OBJECT_STORES = ("s3", "gcs", "abfs")  # file systems without folders and without append
# Names of a file's time of modification in the drivers of fsspec; some have that of creation alone.
TIME_KEYS = (
    "mtime", "last_modified", "LastModified", "modified", "modify", "updated", "modificationTime",
)  # fmt: skip
PERMANENT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that retrying cannot resolve


@contextmanager
def full_disk_errors(location: object) -> Iterator[None]:
    """Turn the OSError of a full or read-only disk into StorageUnavailable, naming the location."""
    try:
        yield
    except OSError as error:
        if error.errno not in PERMANENT_ERRORS:
            raise
        raise StorageUnavailable(f"cannot write to {location}: {error}") from None


class RemoteFile(NamedTuple):
    """A file in a remote folder, as listed by its file system."""

    name: str
    """Path relative to the folder, with `/` between its parts."""
    size: int
    modified_ns: int


def is_uri(location: str) -> bool:
    """Return whether a location is a URI, such as s3://bucket/folder, and not a path."""
    return "://" in location


def check_uri(uri: str) -> str:
    """Return the URI unchanged, if it is usable.

    Raises ValueError if it is malformed, or contains credentials, which the message omits.
    """
    if not re.match(r"[a-z][a-z0-9+.-]*://.", uri):
        raise ValueError("is neither a plain path nor a URI (s3://bucket/folder)")
    parts = urlsplit(uri)
    if parts.password is not None or (parts.username and parts.scheme.startswith("s3")):
        raise ValueError("has credentials in it: put them in the environment or a profile")
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET.search(key):
            raise ValueError(f"has a credential in it ({key}): put it in the environment")
    if ".." in unquote(parts.path).split("/") or "\0" in unquote(uri):
        raise ValueError("is not a plain URI: `..` is not followed")
    return uri


def local_path(location: str) -> str:
    """Return the path of a file:// URI, and every other location unchanged."""
    return unquote(urlsplit(location).path) if location.startswith("file://") else location


def join(location: str, *names: str) -> str:
    """Return a path or URI joined with names; the query of a URI stays at its end."""
    if not is_uri(location):
        return os.path.join(location, *names)
    base, mark, query = location.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


def base_name(uri: str) -> str:
    """Return the last part of a URI's path."""
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """Return the URI without the last part of its path."""
    base, mark, query = uri.partition("?")
    return base.rstrip("/").rpartition("/")[0] + mark + query


def filesystem_errors() -> tuple[type[Exception], ...]:
    """Return the exception types that a file system operation may raise."""
    import pyarrow as pa

    return (OSError, pa.ArrowException)


def open_filesystem(location: str) -> "tuple[fs.FileSystem, str]":
    """Return the file system of a path or URI, and the path on it.

    Raises OSError or ArrowException if it does not exist or cannot be reached.
    """
    from pyarrow import ArrowInvalid, fs

    if not is_uri(location):
        return fs.LocalFileSystem(), location
    try:
        return fs.FileSystem.from_uri(location)
    except ArrowInvalid as error:
        if "nrecognized filesystem type" not in str(error):
            raise
    return _from_fsspec(location)


def _from_fsspec(uri: str) -> "tuple[fs.FileSystem, str]":
    from fsspec.core import url_to_fs
    from pyarrow import fs

    base, _, query = uri.partition("?")
    try:
        system, path = url_to_fs(base, **dict(parse_qsl(query)))
    except (ValueError, ImportError, TypeError) as error:  # fsspec has no driver for it
        raise OSError(str(error)) from None
    return fs.PyFileSystem(fs.FSSpecHandler(_WithTimes(system))), path


class _WithTimes:
    """A file system of fsspec whose files have their time where pyarrow reads it, as `mtime`.

    The drivers of fsspec have not agreed on a name.
    """

    def __init__(self, system: Any):
        self._system = system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask before there is a system
            raise AttributeError(name)
        return getattr(self._system, name)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return _with_time(self._system.info(path, **options))

    def find(self, path: str, **options: Any) -> dict[str, Any]:
        found = self._system.find(path, **options)
        return {name: _with_time(info) for name, info in found.items()}


def _with_time(info: dict[str, Any]) -> dict[str, Any]:
    for key in [key for key in TIME_KEYS if key in info] or ["created"]:
        time = _time(key, info.get(key))
        if time is not None:
            return info | {"mtime": time}
    return {key: value for key, value in info.items() if key != "mtime"}


def _time(key: str, value: Any) -> float | None:
    """Return a time in seconds since 1970; None for what is no time."""
    if isinstance(value, str):
        with suppress(ValueError):
            if key == "modify" and len(value) >= 14:  # FTP: 20260131235959
                value = datetime.strptime(value[:14], "%Y%m%d%H%M%S")
            else:
                value = datetime.fromisoformat(_padded(value.replace("Z", "+00:00")))
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, int | float):
        return value / 1000 if key == "modificationTime" else value  # WebHDFS: milliseconds
    return None


def _padded(text: str) -> str:
    """Return a time whose fraction of a second has the six digits that Python 3.10 asks for."""
    return re.sub(r"\.(\d+)", lambda digits: f".{digits[1][:6]:0<6}", text)


class RemoteFolder:
    """A folder on a file system; `uri` is its address for display.

    Every method raises OSError or ArrowException if the file system fails.
    """

    def __init__(self, system: "fs.FileSystem", path: str, uri: str):
        self.system, self.path, self.uri = system, path.rstrip("/"), uri

    @classmethod
    def open(cls, uri: str) -> "RemoteFolder":
        """Return the folder at a URI or path, which need not exist."""
        return cls(*open_filesystem(uri), uri)

    def child(self, *names: str) -> "RemoteFolder":
        """Return a subfolder, which need not exist."""
        return RemoteFolder(self.system, "/".join([self.path, *names]), join(self.uri, *names))

    def files(self, below: str = "", recursive: bool = True) -> list[RemoteFile]:
        """Return the files in the folder or its subfolder `below`; none if it does not exist.

        Names that lead out of the folder, which object stores allow, are omitted.
        """
        return [
            RemoteFile(self._name(info), info.size or 0, info.mtime_ns or 0)
            for info in self._infos(below, recursive)
            if info.is_file and ".." not in self._name(info).split("/")
        ]

    def folders(self) -> list[str]:
        """Return the names of the direct subfolders."""
        return [info.base_name for info in self._infos("", False) if not info.is_file]

    def file(self, name: str) -> RemoteFile | None:
        """Return the listing of one file; None if it does not exist."""
        info = self.system.get_file_info(self._path(name))
        return RemoteFile(name, info.size or 0, info.mtime_ns or 0) if info.is_file else None

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self.system.open_input_file(self._path(name)) as source:
            return source.read()

    def write(self, name: str, data: bytes) -> RemoteFile:
        """Write a small file, replacing any existing one; return its listing."""
        with self._sink(name) as sink:
            sink.write(data)
        return self._written(name, len(data))

    def append(self, name: str, data: bytes) -> None:
        """Append to a file. Raises NotImplementedError on object stores, which cannot."""
        if self.system.type_name in OBJECT_STORES:
            raise NotImplementedError(f"{self.system.type_name} cannot append to a file")
        with self.system.open_append_stream(self._path(name), compression=None) as sink:
            sink.write(data)

    def download(self, name: str, target: Path) -> None:
        """Download a file to a local path, chunk by chunk."""
        with self.system.open_input_file(self._path(name)) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)

    def upload(self, source: Path, name: str) -> RemoteFile:
        """Upload a local file, chunk by chunk, and return its listing.

        At most FLUSH bytes of it are in memory.
        """
        with source.open("rb") as file, self._sink(name) as sink:
            buffered = 0
            while chunk := file.read(CHUNK):
                sink.write(chunk)
                buffered += len(chunk)
                if buffered >= FLUSH:  # pyarrow's S3 stream would otherwise buffer the whole file
                    sink.flush()
                    buffered = 0
            size = file.tell()
        return self._written(name, size)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        try:
            self.system.delete_file(self._path(name))
        except FileNotFoundError:
            pass

    def delete_folder(self, name: str) -> None:
        """Delete a folder with its contents, if it exists."""
        try:
            self.system.delete_dir(self._path(name))
        except FileNotFoundError:
            pass

    def _written(self, name: str, size: int) -> RemoteFile:
        """Return the listing of a file after writing it. Raises OSError if its size is wrong.

        Servers that do not verify checksums have stored a body with the chunk headers of its
        transfer (aws-chunked), which the S3 client adds and they should remove.
        """
        file = self.file(name)
        if not file or file.size != size:
            found = f"{file.size:,} bytes" if file else "no file"
            raise OSError(f"{name} was written with {size:,} bytes, and the storage has {found}")
        return file

    def _path(self, name: str) -> str:
        return "/".join(filter(None, [self.path, name]))

    def _name(self, info: "fs.FileInfo") -> str:
        return str(info.path)[len(self.path) :].lstrip("/")

    def _infos(self, below: str, recursive: bool) -> "Iterator[fs.FileInfo]":
        from pyarrow import fs

        selector = fs.FileSelector(self._path(below), allow_not_found=True, recursive=recursive)
        return iter(self.system.get_file_info(selector))

    def _sink(self, name: str) -> Any:
        if self.system.type_name not in OBJECT_STORES:
            self.system.create_dir(self._path(name).rpartition("/")[0], recursive=True)
        return self.system.open_output_stream(self._path(name), compression=None)
