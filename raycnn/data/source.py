"""What a data set gives: its shape and class names at once, its images when asked."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from raycnn.errors import DataError
from raycnn.shape import Shape


@dataclass(frozen=True)
class Split:
    """N decoded images with their labels."""

    images: NDArray[np.uint8]
    """(N, height, width, channels)"""
    labels: NDArray[np.int64]
    """(N,), each an index into the source's classes."""


class Source(Protocol):
    shape: Shape
    classes: tuple[str, ...]

    def files(self) -> list[Path]:
        """Everything that is read. Raises DataError when something is missing."""

    def read(self) -> dict[str, Split]:
        """`train` and `test`, and `val` where the source has one."""


def root_of(root: str | None) -> Path:
    """Where data lies: the job's own root, else RAYCNN_DATA, else `data` here."""
    return Path(root or os.environ.get("RAYCNN_DATA") or "data").absolute()


def first_of(folders: list[Path], names: list[str]) -> list[Path] | None:
    """The named files in the first folder that has them all, plain or gzipped."""
    for folder in folders:
        found = [_plain_or_gz(folder / name) for name in names]
        if all(found):
            return [path for path in found if path]
    return None


def _plain_or_gz(path: Path) -> Path | None:
    gz = path.with_name(path.name + ".gz")
    return path if path.is_file() else gz if gz.is_file() else None


def files_of(source: Source) -> list[Path]:
    """What a source reads. Raises DataError when it is not there, or may not be read."""
    try:
        files = source.files()
        for path in files:
            path.open("rb").close()
    except OSError as error:
        raise DataError(f"cannot read the data: {error}") from None
    return files


def fetch(
    name: str,
    root: Path,
    allowed: bool,
    find: Callable[[], list[Path] | None],
    download: Callable[[], object],
) -> list[Path]:
    """What `find` finds, after torchvision's download if need be, by one process of a machine.

    Raises DataError when nothing is there and it may not, or cannot, be downloaded.
    """
    if found := find():
        return found
    where = "RAYCNN_DATA or data.root names the folder that holds it"
    if not allowed:
        raise DataError(
            f"{name} is not in {root}: `data.download=true` fetches it there, and {where}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not (found := find()):
                download()
                found = find()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(f"could not download {name} into {root}: {error}; {where}") from None
    if not found:
        raise DataError(f"the download of {name} into {root} left out files; {where}")
    return found


def check_labels(labels: NDArray[np.integer], classes: int, path: Path) -> NDArray[np.int64]:
    """The labels as int64. Raises DataError at the first row out of range."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: row {row} has label {labels[row]}, where 0 to {classes - 1} are classes "
            f"({len(wrong)} such rows)"
        )
    return labels.astype(np.int64)
