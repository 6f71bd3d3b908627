"""A pyarrow file system whose files an actor reads and writes, on the machine that has them."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from pyarrow import fs

from raycnn.errors import first_line
from raycnn.filesystem import RemoteFolder
from raycnn.io import fsync

CHUNK = 16 << 20  # bytes in one message
TOKEN_FILE = ".here"  # distinguishes a folder from another one with the same path


class Entry(NamedTuple):
    """The metadata of a file or folder on the server."""

    path: str
    is_file: bool
    size: int
    modified_ns: int


class FileServer:
    """An actor that reads and writes below a folder; Ray restarts it when it dies.

    A file is written under a hidden name, and renamed when complete.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def has_token(self, token: str) -> bool:
        return has_token(self.folder, token)

    def stat(self, path: str) -> Entry | None:
        """Return the entry at a path, or None."""
        try:
            found = self._at(path).stat()
        except FileNotFoundError:
            return None
        return Entry(path, self._at(path).is_file(), found.st_size, found.st_mtime_ns)

    def list(self, path: str, recursive: bool) -> list[Entry] | None:
        """Return the entries of a folder; None where there is no such folder."""
        top = self._at(path)
        if not top.is_dir():
            return None
        found = top.rglob("*") if recursive else top.iterdir()
        names = [str(one.relative_to(self.folder)) for one in found]
        return [entry for name in names if (entry := self.stat(name))]

    def read(self, path: str, offset: int, size: int) -> bytes:
        with self._at(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write to a hidden file, which becomes visible by `install`."""
        temporary = self._temporary(path)
        try:
            with temporary.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError:
            temporary.unlink(missing_ok=True)  # it may have filled the disk
            raise

    def install(self, path: str) -> None:
        """Rename a completely written file to its final name."""
        fsync(self._temporary(path))
        os.replace(self._temporary(path), self._at(path))

    def append(self, path: str, data: bytes) -> None:
        with self._at(path).open("ab") as file:
            file.write(data)

    def make_folder(self, path: str) -> None:
        self._at(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str) -> None:
        if self._at(path).is_dir():
            shutil.rmtree(self._at(path))
        else:
            self._at(path).unlink()

    def _at(self, path: str) -> Path:
        return self.folder / path.strip("/")

    def _temporary(self, path: str) -> Path:
        return self._at(path).with_name(f".{self._at(path).name}")


class RemoteCalls:
    """Calls methods of the server from another node, and returns or raises their results."""

    def __init__(self, actor: Any, timeout_s: float):
        self.actor, self.timeout_s = actor, timeout_s

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method. Raises its error, or OSError when the server does not answer."""
        try:
            asked = getattr(self.actor, method).remote(*arguments)
            return ray.get(asked, timeout=self.timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(
                f"the machine that has the folder gave no answer to {this_node()} for "
                f"{self.timeout_s:g} s"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(first_line(error)) from None


class ServedFiles(fs.FileSystemHandler):  # type: ignore[misc]
    """pyarrow's interface to a FileServer; `call` calls its methods, as RemoteCalls does."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServedFiles) and self.call is other.call

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return "ray"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        return [_info(path, self.call("stat", path)) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        found = self.call("list", selector.base_dir, selector.recursive)
        if found is None and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return [_info(entry.path, entry) for entry in found or ()]

    def create_dir(self, path: str, recursive: bool) -> None:
        self.call("make_folder", path)

    def delete_dir(self, path: str) -> None:
        self.call("remove", path)

    def delete_file(self, path: str) -> None:
        self.call("remove", path)

    def open_input_file(self, path: str) -> Any:
        entry = self.call("stat", path)
        if not entry:
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BufferedReader(_Reader(self.call, path, entry.size), CHUNK), "r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(io.BufferedWriter(_Writer(self.call, path), CHUNK), "w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Appender(self.call, path), "w")

    open_input_stream = open_input_file

    def _refuse(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("runs need it not")

    delete_dir_contents = delete_root_dir_contents = move = copy_file = _refuse


class _Reader(io.RawIOBase):
    def __init__(self, call: Callable[..., Any], path: str, size: int):
        self.call, self.path, self.size, self.position = call, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {0: 0, 1: self.position, 2: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.call("read", self.path, self.position, min(len(buffer), CHUNK))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class _Writer(io.RawIOBase):
    def __init__(self, call: Callable[..., Any], path: str):
        self.call, self.path, self.position, self.whole = call, path, 0, True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data[:CHUNK])
        self.whole = False
        self.call("write", self.path, self.position, part)
        self.whole = True
        self.position += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed and self.whole:
            if not self.position:
                self.call("write", self.path, 0, b"")
            self.call("install", self.path)
        super().close()


class _Appender(io.RawIOBase):
    def __init__(self, call: Callable[..., Any], path: str):
        self.call, self.path = call, path

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.call("append", self.path, bytes(data))
        return len(data)


def _info(path: str, entry: Entry | None) -> Any:
    if entry is None:
        return fs.FileInfo(path, fs.FileType.NotFound)
    kind = fs.FileType.File if entry.is_file else fs.FileType.Directory
    return fs.FileInfo(path, kind, size=entry.size, mtime_ns=entry.modified_ns)


def open_served(call: Callable[..., Any], folder: Path) -> RemoteFolder:
    """Return the served folder as a RemoteFolder."""
    return RemoteFolder(fs.PyFileSystem(ServedFiles(call)), "", str(folder))


def has_token(folder: Path, token: str) -> bool:
    """Return whether this node sees the folder with this token."""
    try:
        return (folder / TOKEN_FILE).read_text() == token
    except OSError:
        return False


def this_node() -> str:
    """Return the name of this node for messages."""
    return f"node {ray.util.get_node_ip_address()}"
