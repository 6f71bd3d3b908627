"""Local files and folders: written atomically, complete or not at all, and locks between processes.

Folders at a URI are in filesystem.py; paths.py has the folders of data sets and caches.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycnn.errors import EnvironmentUnavailable, StorageUnavailable

NOTICE_S = 3  # seconds of waiting before `on_wait` is called


@contextmanager
def atomic_path(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a hidden path next to `path` to write to; it is renamed to `path` when the block ends.

    Readers see the old file or the new one, never a partial one. With `durable` the file is
    synced to disk before it is renamed, and survives a power loss. If the block raises, `path` is
    unchanged.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        if durable:
            fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync(path.parent)


@contextmanager
def atomic_folder(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a new hidden folder next to `path`; it is renamed to `path` when the block ends.

    A folder that is there is deleted just before: readers see it, none, or the complete new one.
    With `durable` all files are synced to disk before the rename, and survive a power loss. If the
    block raises, `path` is unchanged. One process at a time may write the same folder.
    """
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        yield temporary
        if durable:
            for written in (*temporary.rglob("*"), temporary):
                fsync(written)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if durable:
        fsync(path.parent)


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write `value` as JSON, atomically. Raises OSError if writing fails."""
    with atomic_path(path, durable) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it is missing, truncated or not an object."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, first ending a line that a full disk or a kill truncated."""
    with path.open("a+b") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        file.write(f"{line}\n".encode())


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock(
    path: Path, busy: str, timeout_s: float = -1, on_wait: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold the lock file `path`, waiting at most `timeout_s` seconds for it (-1: forever).

    `on_wait` is called if it is not free within NOTICE_S seconds. Raises EnvironmentUnavailable:
    with `busy` as its message if another process holds it for longer, or if the lock cannot be
    written. The kernel frees the lock of a process that dies.
    """
    from filelock import FileLock, Timeout  # imports asyncio, which reading a spec need not

    file_lock = FileLock(path)
    gives_notice = on_wait and not 0 <= timeout_s <= NOTICE_S
    try:
        path.open("ab").close()  # FileLock would wait for a file that cannot be created
        try:
            file_lock.acquire(timeout=NOTICE_S if gives_notice else timeout_s)
        except Timeout:
            if not on_wait or not gives_notice:
                raise
            on_wait()
            file_lock.acquire(timeout=timeout_s)
    except Timeout:
        raise EnvironmentUnavailable(busy) from None
    except OSError as error:
        raise StorageUnavailable(f"cannot write to {path.parent}: {error}") from None
    try:
        yield
    finally:
        file_lock.release()


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock file; False if that cannot be checked."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # no process works in a read-only folder
        return False
