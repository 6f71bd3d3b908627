"""The interface of data sources: shape and class names first, images on demand."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from raycnn import io
from raycnn.data.images.decode import BadImage, Decoded
from raycnn.data.label_arrays import LabelArray, strata
from raycnn.data.sampling import stratified_sample
from raycnn.errors import DataError
from raycnn.filesystem import is_uri, open_filesystem
from raycnn.shape import Shape

SPLITS = ("train", "val", "test")
TEST_SEED = 0
MAX_NAMES_SHOWN = 10  # in a message
Share = Annotated[float, Field(gt=0, lt=1)]


class Images(Protocol):
    """Images (N, height, width, channels) uint8: in memory, memory-mapped, or decoded on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the images (B, height, width, channels) uint8 of rows (B,) int64."""


@dataclass(frozen=True)
class Split:
    """N images with their labels."""

    images: Images
    labels: LabelArray
    """(N,) int64, each an index into the source's classes; or multi-label (N, K) uint8."""
    names: NDArray[np.bytes_] | None = None
    """(N,) file names as bytes, relative to a common folder, where each image is a file."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user: files that were ignored, labels that were converted."""


@dataclass(frozen=True)
class Subset:
    """A view of some rows of images, in the order of `rows`."""

    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[self.rows[rows]]

    def decode(self, rows: NDArray[np.int64]) -> list[Decoded | BadImage]:
        return decode_rows(self.images, self.rows[rows])


def decode_rows(images: Images, rows: NDArray[np.int64]) -> list[Decoded | BadImage]:
    """Return the image of each row, or its BadImage error if it cannot be read."""
    if decode := getattr(images, "decode", None):
        return decode(rows)
    return [Decoded(image, ()) for image in np.asarray(images[rows])]


class File(NamedTuple):
    """The identity of an input file: a different size or time means different data."""

    name: str
    size: int
    modified_ns: int


class Source(Protocol):
    """A data set: its shape, class names, input files and splits.

    Properties that the options leave open are read from the files, which may raise DataError.
    """

    @property
    def shape(self) -> Shape: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def files(self) -> Sequence[Path | str]:
        """Return all input files, URIs included. Raises DataError when one is missing."""

    def read(self) -> dict[str, Split]:
        """Return the splits `train` and `test`, and `val` where the source has one."""


def multi_label(source: Source) -> bool:
    """Return whether the images of a source may have any number of classes."""
    return bool(getattr(source, "multi_label", False))


def first_of(folders: list[Path], names: Sequence[Sequence[str]]) -> list[Path] | None:
    """Return the files of the first folder that holds all of them, each under one of its names."""
    for folder in folders:
        paths = [_find_file(folder, spellings) for spellings in names]
        if all(paths):
            return [path for path in paths if path]
    return None


def _find_file(folder: Path, spellings: Sequence[str]) -> Path | None:
    """Return the first file of these names, plain, gzipped, or in a folder of its own name.

    The last is how Kaggle unpacks it.
    """
    for name in spellings:
        for path in (folder / name, folder / f"{name}.gz", folder / name / name):
            if path.is_file():
                return path
    return None


def files_of(source: Source) -> list[File]:
    """Return the input files of a source. Raises DataError when one is missing or unreadable."""
    try:
        return [_stat(str(name)) for name in source.files()]
    except (OSError, pa.ArrowException) as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> DataError:
    """Return the error of a data set for one of the file system, or of pyarrow."""
    if isinstance(error, NotADirectoryError):
        return DataError(f"{error.filename} is a file: name the folder that holds the images")
    if isinstance(error, FileNotFoundError) and error.filename:
        return DataError(f"cannot read the data: there is no {error.filename}")
    return DataError(f"cannot read the data: {error}")


def empty_split(name: str) -> DataError:
    """Return the error of a split without images."""
    if name != "test":
        return DataError(f"the {name} split is empty")
    return DataError(
        "the test split is empty: a data set without one needs more images, for data.test of them "
        "are held out, and each class keeps one for training"
    )


def _stat(name: str) -> File:
    if is_uri(name):
        system, path = open_filesystem(name)
        info = system.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(f"{name} does not exist")
        return File(name, info.size, info.mtime_ns or 0)
    stat = os.stat(name)
    if not os.access(name, os.R_OK):
        raise PermissionError(f"no permission to read {name}")
    return File(name, stat.st_size, stat.st_mtime_ns)


def hold_out(split: Split, share: float) -> dict[str, Split]:
    """Split a source without a test split into `train` and `test`, stratified by class.

    The split is the same for every job. A class with a single image keeps it in train.
    """
    count = round(share * len(split.labels))
    test = stratified_sample(strata(split.labels), count, TEST_SEED, keep_one=True)
    train = np.delete(np.arange(len(split.labels)), test)
    return {"train": _subset(split, train), "test": replace(_subset(split, test), warnings=())}


def with_test(splits: dict[str, Split], share: float) -> dict[str, Split]:
    """Return splits with a test split, which if missing is held out of train."""
    return splits if "test" in splits else splits | hold_out(splits["train"], share)


def spread_rows(count: int, max_rows: int) -> NDArray[np.int64]:
    """Return up to `max_rows` of `count` rows, spread evenly from the first to the last."""
    return np.unique(np.linspace(0, count - 1, max_rows).astype(np.int64))


def _subset(split: Split, rows: NDArray[np.int64]) -> Split:
    names = None if split.names is None else split.names[rows]
    return Split(Subset(split.images, rows), split.labels[rows], names, split.warnings)


def common_class_names(classes: dict[str, tuple[str, ...]], where: object) -> tuple[str, ...]:
    """Return the class names common to all splits. Raises DataError naming those that differ."""
    first, *rest = classes
    for split in rest:
        if classes[split] != classes[first]:
            raise DataError(
                f"{where}: the classes of the splits differ: {first} has "
                f"{_differing(classes[first], classes[split])}; {split} has "
                f"{_differing(classes[split], classes[first])}"
            )
    return require_two_classes(classes[first], where)


def require_two_classes(classes: tuple[str, ...], where: object) -> tuple[str, ...]:
    """Return the classes. Raises DataError for fewer than two."""
    if len(classes) < 2:
        names = ", ".join(classes) or "none"
        raise DataError(f"{where}: fewer than two classes ({names})")
    return classes


def _differing(names: tuple[str, ...], than: tuple[str, ...]) -> str:
    """Return all names if they are few, else those missing from `than`."""
    few = len(names) <= MAX_NAMES_SHOWN
    return listed(names if few else [name for name in names if name not in {*than}])


def listed(names: Sequence[object]) -> str:
    """Return the first names as text for a message."""
    more = f" and {len(names) - MAX_NAMES_SHOWN:,} more" if len(names) > MAX_NAMES_SHOWN else ""
    return (", ".join(map(str, names[:MAX_NAMES_SHOWN])) or "none") + more


def find_or_download(
    name: str,
    root: Path,
    allowed: bool,
    find: Callable[[], list[Path] | None],
    download: Callable[[], object],
    expected: str,
) -> list[Path]:
    """Return the files that `find` finds, downloading them first, under a lock, if necessary.

    Raises DataError if files are missing and may not, or cannot, be downloaded; its message has
    `expected`, the names of the files.
    """
    if files := find():
        return files
    hint = "set RAYCNN_DATA or data.root to the folder that holds it"
    if not allowed:
        raise DataError(
            f"{name} is not in {root} ({expected}); set `data.download=true` to download it, or "
            f"{hint}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with io.lock(root / f".{name}.lock", f"{name} is being downloaded"):
            if not (files := find()):
                download()
                files = find()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(f"could not download {name} into {root}: {error}; {hint}") from None
    if not files:
        raise DataError(f"the download of {name} into {root} is incomplete ({expected}); {hint}")
    return files
