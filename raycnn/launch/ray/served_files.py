"""A remote folder whose files an actor reads and writes, on the machine that has them."""

import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import ray

from raycnn.errors import first_line
from raycnn.filesystem import RemoteFile, RemoteFolder, join
from raycnn.io import fsync

CHUNK = 16 << 20  # bytes in one message
FOLDER_ID_FILE = ".here"  # distinguishes a folder from another one with the same path


class FileServer:
    """An actor that reads and writes below a folder; Ray restarts it when it dies.

    All paths are relative to the folder. A file is written under a hidden name, and renamed when
    complete.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def has_id(self, folder_id: str) -> bool:
        return has_id(self.folder, folder_id)

    def file(self, path: str) -> RemoteFile | None:
        """Return the listing of a file; None where there is none."""
        try:
            stat = self._at(path).stat()
        except FileNotFoundError:
            return None
        if not self._at(path).is_file():
            return None
        return RemoteFile(path, stat.st_size, stat.st_mtime_ns)

    def files(self, folder: str, recursive: bool) -> list[RemoteFile]:
        """Return the files in a folder; none where there is no such folder."""
        top = self._at(folder)
        if not top.is_dir():
            return []
        paths = top.rglob("*") if recursive else top.iterdir()
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        return [file for name in names if (file := self.file(name))]

    def read(self, path: str, offset: int, size: int) -> bytes:
        with self._at(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write to a hidden file, which becomes visible by `install`."""
        temporary = self._temporary(path)
        temporary.parent.mkdir(parents=True, exist_ok=True)
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
        self._at(path).parent.mkdir(parents=True, exist_ok=True)
        with self._at(path).open("ab") as file:
            file.write(data)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with its contents."""
        if self._at(path).is_dir():
            shutil.rmtree(self._at(path))
        else:
            self._at(path).unlink()

    def _at(self, path: str) -> Path:
        return self.folder / path

    def _temporary(self, path: str) -> Path:
        return self._at(path).with_name(f".{self._at(path).name}")


class RemoteCalls:
    """Calls methods of the server from another node, and returns or raises their results."""

    def __init__(self, actor: Any, timeout_s: float):
        self.actor, self.timeout_s = actor, timeout_s

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method. Raises its error, or OSError when the server does not answer."""
        try:
            result = getattr(self.actor, method).remote(*arguments)
            return ray.get(result, timeout=self.timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(
                f"the machine that has the folder gave no answer to {this_node()} for "
                f"{self.timeout_s:g} s"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(first_line(error)) from None


class ServedFolder(RemoteFolder):
    """The folder of a FileServer, or one inside; `call` calls its methods, as RemoteCalls does.

    It lists no folders, which only the search for a free number needs.
    """

    def __init__(self, call: Callable[..., Any], uri: str, path: str = ""):
        self.call, self.uri, self.path = call, uri, path

    def child(self, *names: str) -> "ServedFolder":
        return ServedFolder(self.call, join(self.uri, *names), self._path("/".join(names)))

    def files(self, below: str = "", recursive: bool = True) -> list[RemoteFile]:
        files: list[RemoteFile] = self.call("files", self._path(below), recursive)
        prefix = f"{self.path}/"
        return [RemoteFile(file.name.removeprefix(prefix), *file[1:]) for file in files]

    def file(self, name: str) -> RemoteFile | None:
        file: RemoteFile | None = self.call("file", self._path(name))
        return RemoteFile(name, *file[1:]) if file else None

    def read(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    def write(self, name: str, data: bytes) -> RemoteFile:
        return self._send(io.BytesIO(data), name)

    def append(self, name: str, data: bytes) -> None:
        self.call("append", self._path(name), data)

    def download(self, name: str, target: Path) -> None:
        with target.open("wb") as sink:
            sink.writelines(self._chunks(name))

    def upload(self, source: Path, name: str) -> RemoteFile:
        with source.open("rb") as file:
            return self._send(file, name)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.call("remove", self._path(name))

    def delete_folder(self, name: str) -> None:
        self.delete(name)

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Read a file in chunks, each of which is one message."""
        for offset in itertools.count(0, CHUNK):
            chunk: bytes = self.call("read", self._path(name), offset, CHUNK)
            yield chunk
            if len(chunk) < CHUNK:
                return

    def _send(self, source: BinaryIO, name: str) -> RemoteFile:
        """Write a file in chunks, each of which is one message, and return its listing."""
        for offset in itertools.count(0, CHUNK):
            chunk = source.read(CHUNK)
            if chunk or not offset:  # an empty file is one empty chunk
                self.call("write", self._path(name), offset, chunk)
            if len(chunk) < CHUNK:
                break
        self.call("install", self._path(name))
        return self._written(name, source.tell())


def has_id(folder: Path, folder_id: str) -> bool:
    """Return whether this node sees the folder with this id."""
    try:
        return (folder / FOLDER_ID_FILE).read_text() == folder_id
    except OSError:
        return False


def this_node() -> str:
    """Return the name of this node for messages."""
    return f"node {ray.util.get_node_ip_address()}"
