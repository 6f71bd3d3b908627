"""What a data set gives: its shape and class names at once, its images when asked."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs
from pydantic import Field

from raycnn import io
from raycnn.data.sampling import stratified_sample
from raycnn.errors import DataError
from raycnn.shape import Shape

TEST_SEED = 0
MOST_CLASSES = 100_000  # of classes without names: a larger label is no class number
Share = Annotated[float, Field(gt=0, lt=1)]


class Images(Protocol):
    """N images (N, height, width, channels) uint8, in memory, mapped, or made when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Of rows (B,) int64 the images (B, height, width, channels) uint8."""


@dataclass(frozen=True)
class Split:
    """N images with their labels."""

    images: Images
    labels: NDArray[np.int64]
    """(N,), each an index into the source's classes."""
    names: NDArray[np.bytes_] | None = None
    """(N,) of the files, where each image is one, as the system has them, below a common folder."""
    aside: str = ""
    """What lay beside the images and was ignored, in words."""


@dataclass(frozen=True)
class Part:
    """Some rows of images, in their order."""

    whole: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.whole[self.rows[rows]]


class File(NamedTuple):
    """A file that is read; one with another size or time is other data."""

    name: str
    size: int
    modified_ns: int


class Source(Protocol):
    """What is not known from its options alone is read when it is asked for: then DataError."""

    @property
    def shape(self) -> Shape: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def files(self) -> Sequence[Path | str]:
        """Everything that is read, URIs included. Raises DataError when something is missing."""

    def read(self) -> dict[str, Split]:
        """`train` and `test`, and `val` where the source has one."""


def first_of(folders: list[Path], names: Sequence[str]) -> list[Path] | None:
    """The named files in the first folder that has them all, plain or gzipped."""
    for folder in folders:
        found = [_plain_or_gz(folder / name) for name in names]
        if all(found):
            return [path for path in found if path]
    return None


def _plain_or_gz(path: Path) -> Path | None:
    gz = path.with_name(path.name + ".gz")
    return path if path.is_file() else gz if gz.is_file() else None


def files_of(source: Source) -> list[File]:
    """What a source reads. Raises DataError when it is not there, or may not be read."""
    try:
        return [_look_at(str(name)) for name in source.files()]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the data: {error}") from None


def _look_at(name: str) -> File:
    if "://" in name:
        system, path = fs.FileSystem.from_uri(name)
        info = system.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(f"there is no {name}")
        return File(name, info.size, info.mtime_ns or 0)
    stat = os.stat(name)
    if not os.access(name, os.R_OK):
        raise PermissionError(f"no permission to read {name}")
    return File(name, stat.st_size, stat.st_mtime_ns)


def hold_out(whole: Split, share: float) -> dict[str, Split]:
    """`train` and `test` of a source that comes unsplit: by class, and the same for every job."""
    test = stratified_sample(whole.labels, round(share * len(whole.labels)), TEST_SEED)
    train = np.delete(np.arange(len(whole.labels)), test)
    return {"train": _part(whole, train), "test": replace(_part(whole, test), aside="")}


def _part(split: Split, rows: NDArray[np.int64]) -> Split:
    names = None if split.names is None else split.names[rows]
    return Split(Part(split.images, rows), split.labels[rows], names, split.aside)


def common_class_names(classes: dict[str, tuple[str, ...]], where: object) -> tuple[str, ...]:
    """The class names that all splits agree on. Raises DataError with the lists that differ."""
    first, *others = classes
    for other in others:
        if classes[other] != classes[first]:
            raise DataError(
                f"{where}: the classes of the splits differ: {first} has "
                f"{', '.join(classes[first])}; {other} has {', '.join(classes[other])}"
            )
    if len(classes[first]) < 2:
        names = ", ".join(classes[first]) or "none"
        raise DataError(f"{where}: fewer than two classes ({names}), so nothing to tell apart")
    return classes[first]


def find_or_download(
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
        with io.lock(root / f".{name}.lock", f"{name} is being downloaded"):
            if not (found := find()):
                download()
                found = find()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(f"could not download {name} into {root}: {error}; {where}") from None
    if not found:
        raise DataError(f"the download of {name} into {root} left out files; {where}")
    return found


def numbered_class_names(labels: Sequence[NDArray[Any]], where: object) -> tuple[str, ...]:
    """Class names for labels without: their numbers, from 0 to the largest that is there."""
    numbers = [part for part in labels if part.dtype.kind in "iu"]  # others are refused by row
    largest = max((int(part.max(initial=0)) for part in numbers), default=1)
    if largest < 1:
        raise DataError(f"{where}: all labels are 0, and one class alone cannot be learned")
    if largest >= MOST_CLASSES:
        raise DataError(f"{where}: label {largest}, where at most {MOST_CLASSES:,} classes can be")
    return tuple(map(str, range(largest + 1)))


def check_labels(labels: NDArray[Any], classes: int, path: Path | str) -> NDArray[np.int64]:
    """The labels as int64. Raises DataError at the first row that is no class number."""
    if not len(labels):
        raise DataError(f"{path} holds no labels")
    if labels.dtype.kind not in "iu":
        values = labels.tolist()
        row = next((i for i, value in enumerate(values) if not isinstance(value, int)), 0)
        raise DataError(f"{path}: row {row} has label {values[row]!r}, which is no class number")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: row {row} has label {labels[row]}, where 0 to {classes - 1} are classes "
            f"({len(wrong)} such rows)"
        )
    return labels.astype(np.int64)
