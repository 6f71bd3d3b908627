"""A partial build of a cache folder: arrays that grow, and a record of how far they are.

It is a hidden folder, which is renamed when it is complete. The arrays are synced to disk before
they are recorded; what a killed process has appended after that is truncated.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from raycnn import __version__, io

RECORD = "build.json"
VERSIONS = {"raycnn": __version__, "pillow": PIL.__version__, "numpy": np.__version__}


@dataclass
class BuildRecord:
    """How far a build is, and what it has found."""

    of: dict[str, str]
    """The name of the cache folder, and the versions of the packages that decode."""
    decoded: dict[str, int] = field(default_factory=dict)
    """The number of images decoded of each split, whether or not they can be read."""
    readable: dict[str, int] = field(default_factory=dict)
    """The number of images of each split in the arrays."""
    unreadable: list[str] = field(default_factory=list)
    """The error of each image that cannot be read."""
    conversions: Counter[str] = field(default_factory=Counter)
    """The number of images of each lossy conversion."""


class RowFormat(NamedTuple):
    """The type and shape of the rows of an array."""

    dtype: type[np.generic]
    shape: tuple[int, ...] = ()


class PartialBuild:
    """The partial build of a cache folder at a path, where one of anything else is deleted."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.record = BuildRecord({"folder": folder.name} | VERSIONS)
        found = io.read_json(path / RECORD) or {}
        if found.get("of") == self.record.of:
            self.record = BuildRecord(**found | {"conversions": Counter(found["conversions"])})
        else:
            self.delete()
            path.mkdir()

    @contextmanager
    def open_arrays(
        self, split: str, formats: dict[str, RowFormat]
    ) -> Iterator[dict[str, "GrowingArray"]]:
        """Yield the arrays of a split, with the rows that are recorded."""
        (self.path / split).mkdir(exist_ok=True)
        keep = self.record.readable[split]
        with ExitStack() as stack:
            arrays = {
                name: GrowingArray(self.path / split / f"{name}.npy", row, keep)
                for name, row in formats.items()
            }
            for array in arrays.values():
                stack.callback(array.close)
            yield arrays

    def save(self, arrays: Iterable["GrowingArray"]) -> None:
        """Sync the arrays to disk, and then record how far they are."""
        for array in arrays:
            array.sync()
        io.write_json(self.path / RECORD, vars(self.record), durable=True)

    def complete(self) -> None:
        """Rename it to the cache folder."""
        self.path.rename(self.folder)
        (self.folder / RECORD).unlink(missing_ok=True)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class GrowingArray:
    """A .npy file to which rows are appended, after the first `keep` rows that it has.

    Its header has the number of rows only when it is closed.
    """

    def __init__(self, path: Path, row: RowFormat, keep: int):
        self.dtype, self.row_shape, self.rows = np.dtype(row.dtype), row.shape, keep
        self.file = path.open("r+b" if path.exists() else "w+b")
        self._write_header()
        self.file.truncate(self.file.tell() + keep * math.prod(row.shape) * self.dtype.itemsize)
        self.file.seek(0, os.SEEK_END)

    def append(self, rows: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        """Write the header, whose length is the same for every number of rows."""
        header = {
            "descr": self.dtype.str,
            "fortran_order": False,
            "shape": (self.rows, *self.row_shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)
