"""Images and labels as arrays in HDF5 files, one or two files per split, as in the SIGNS data set.

Images are (N, H, W, C), (N, C, H, W) or (N, H, W). White is 255 for integers, or the largest value
of their range above 8 bits, and 1 for floats.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import PathOrUri, SafePath
from raycnn.data.images.decode import MaxValue
from raycnn.data.images.levels import find_max_value, scale_to_uint8
from raycnn.data.sources.base import (
    Share,
    Source,
    Split,
    common_class_names,
    spread_rows,
    with_test,
)
from raycnn.data.sources.labels import Column, Labels, encode_labels
from raycnn.errors import DataError
from raycnn.runtime import memory
from raycnn.shape import Shape

Layout = Literal["nhwc", "nchw"]

SIGNS = ("train_signs.h5", "test_signs.h5")
IMAGES, LABELS, CLASSES = "{split}_set_x", "{split}_set_y", "list_classes"
CHANNELS = {1, 3, 4}
SAMPLE = 64  # images sampled to find the value of white
SAMPLE_BYTES = 2**26


class Hdf5File:
    """An HDF5 file, opened lazily and separately in each process."""

    def __init__(self, path: Path):
        self.path = path
        self._opened: tuple[int, Any] | None = None
        self._checked: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None, "_checked": self._checked}

    def has(self, key: str) -> bool:
        return isinstance(self._safely(lambda file: file.get(key)), h5py.Dataset)

    def arrays(self) -> dict[str, Any]:
        """Return all datasets of the file by key."""
        datasets: dict[str, Any] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[name] = item

        self._safely(lambda file: file.visititems(visit))
        return datasets

    def array(self, key: str, option: str) -> Any:
        """Return a dataset. Raises DataError listing the existing keys and the option to set."""
        if not self.has(key):
            keys = ", ".join(self.arrays()) or "no keys"
            raise DataError(f"{self.path} has no key {key!r} but {keys}; set `data.{option}`")
        array = self._safely(lambda file: file[key])
        if key not in self._checked:
            self._safely(lambda _: self._check_written(key, array))
            self._checked.add(key)
        return array

    def take(self, key: str, option: str, rows: Any) -> NDArray[Any]:
        array = self.array(key, option)
        if rows is ...:
            memory.require_memory(
                array.size * array.dtype.itemsize, f"{self.path}: {key} {array.shape}"
            )
        return self._safely(lambda _: np.asarray(array[rows]))

    def _check_written(self, key: str, array: Any) -> None:
        """Raise DataError if values of an array are missing from the file.

        HDF5 would return zeros for values that were never written.
        """
        if not array.size or array.is_virtual or array.external:
            return
        if array.chunks is None:
            stored, expected, unit = array.id.get_storage_size(), array.nbytes, "bytes"
        else:
            sides = zip(array.shape, array.chunks, strict=True)
            expected = math.prod(-(-side // chunk) for side, chunk in sides)
            stored, unit = array.id.get_num_chunks(), "chunks"
        if stored < expected:
            raise DataError(
                f"{self.path}: {key} {array.shape} is incomplete: {stored:,} of {expected:,} "
                f"{unit} are in the file"
            )

    def _safely(self, use: Callable[[Any], Any]) -> Any:
        try:
            if not self._opened or self._opened[0] != os.getpid():
                self._opened = os.getpid(), h5py.File(self.path, "r", locking="best-effort")
            return use(self._opened[1])
        except (OSError, RuntimeError, TypeError, MemoryError) as error:
            raise DataError(f"cannot read {self.path} as HDF5: {error}") from None


@dataclass(frozen=True)
class Arrays:
    """The images of a file, converted to (B, H, W, C) uint8 on access."""

    file: Hdf5File
    key: str
    layout: Layout
    max_value: float

    def __len__(self) -> int:
        return len(self.file.array(self.key, "images"))

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (B, H, W, C) uint8. Raises DataError for a value outside 0 to `max_value`."""
        unique, back = np.unique(rows, return_inverse=True)  # h5py needs ascending, unique rows
        contiguous = len(unique) and unique[-1] - unique[0] + 1 == len(unique)
        index = slice(unique[0], unique[-1] + 1) if contiguous else unique
        pixels = self.file.take(self.key, "images", index)[back]
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if self.layout == "nchw":
            pixels = pixels.transpose(0, 2, 3, 1)
        try:
            return np.ascontiguousarray(scale_to_uint8(pixels, self.max_value))
        except DataError:
            raise self._out_of_range(pixels, rows) from None

    def _out_of_range(self, pixels: NDArray[Any], rows: NDArray[np.int64]) -> DataError:
        good = ((pixels >= 0) & (pixels <= self.max_value)).all(axis=(1, 2, 3))  # false for NaN
        first = int(np.argmin(good))
        return DataError(
            f"{self.file.path}: row {rows[first]} of {self.key} ranges from {pixels[first].min()} "
            f"to {pixels[first].max()}, expected 0 to {self.max_value:g}; set `data.max_value`"
        )


@dataclass(frozen=True)
class Keys:
    """Keys of the datasets in a file; `{split}` stands for train, val or test; None: detect it."""

    images: str | None
    labels: str | None
    classes: str | None


@dataclass(frozen=True)
class SplitFiles:
    """The image file and the label file of one split, which may be the same."""

    images: Hdf5File
    labels: Hdf5File


class Hdf5:
    """Images and labels in HDF5 files of one or several splits."""

    def __init__(
        self,
        splits: dict[str, SplitFiles],
        keys: Keys,
        share: float,
        layout: Layout | None,
        max_value: float | None,
    ):
        self.splits, self.keys, self.share = splits, keys, share
        self._layout, self._max_value = layout, max_value

    def files(self) -> list[Path]:
        both = (handle.path for of in self.splits.values() for handle in (of.images, of.labels))
        return list(dict.fromkeys(both))

    @cached_property
    def labels(self) -> Labels:
        columns = {
            name: [
                Column(str(of.labels.path), of.labels.take(self._labels_key(name), "labels", ...))
            ]
            for name, of in self.splits.items()
        }
        return encode_labels(columns, self._class_names(), self.splits["train"].labels.path)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    @cached_property
    def shape(self) -> Shape:
        return self._shape("train")

    @cached_property
    def max_value(self) -> float:
        """The value of white, the same for all splits. Raises DataError if it is ambiguous."""
        if self._max_value:
            return self._max_value
        array = self._array("train")
        rows = spread_rows(len(array), self._sample_size(array))
        sample = self.splits["train"].images.take(self._images_key("train"), "images", rows)
        if sample.dtype == bool:
            return 1
        low, high = (sample.min(), sample.max()) if sample.size else (0, 0)
        if max_value := find_max_value(low, high, sample.dtype.kind in "iu"):
            return max_value
        path, key = self.splits["train"].images.path, self._images_key("train")
        raise DataError(
            f"{path}: {key} ranges from {low:g} to {high:g}, expected 0 to 1 or 0 to 255: the "
            "white level is ambiguous; set `data.max_value`"
        )

    def read(self) -> dict[str, Split]:
        splits = {name: self._split(name) for name in self.labels.splits}
        splits["train"] = replace(splits["train"], warnings=self._warnings())
        return with_test(splits, self.share)

    def _split(self, name: str) -> Split:
        path = self.splits[name].images.path
        key, labels = self._images_key(name), self.labels.splits[name]
        images = Arrays(self.splits[name].images, key, self.layout, self.max_value)
        if len(images) != len(labels):
            raise DataError(f"{path} has {len(images):,} images and {len(labels):,} labels")
        if self._shape(name) != self.shape:
            raise DataError(f"{path} has images of {self._shape(name)}, expected {self.shape}")
        return Split(images, labels)

    def _warnings(self) -> tuple[str, ...]:
        warnings = [
            f"{self.splits['train'].images.path}: {what} read from {key!r}"
            for what, key, given, usual in (
                ("images", self._images_key("train"), self.keys.images, IMAGES),
                ("labels", self._labels_key("train"), self.keys.labels, LABELS),
            )
            if not given and key != usual.replace("{split}", "train")
        ]
        if not self._max_value and self.max_value not in (1, 255):
            warnings.append(
                f"{self.splits['train'].images.path}: {self.max_value:g} is taken for white"
            )
        return (*warnings, *self.labels.warnings)

    def _class_names(self) -> tuple[str, ...] | None:
        """Return the class names that the files contain, or None."""
        key = self.keys.classes or CLASSES
        files = {name: of.labels for name, of in self.splits.items()}
        if not self.keys.classes:
            files = {name: file for name, file in files.items() if file.has(key)}
        if not files:
            return None
        names = {
            name: tuple(map(_text, file.take(key, "classes", ...).ravel()))
            for name, file in files.items()
        }
        return common_class_names(names, self.splits["train"].labels.path.parent)

    def _images_key(self, split: str) -> str:
        file = self.splits[split].images
        return self._key(file, split, self.keys.images, IMAGES, _may_be_images)

    def _labels_key(self, split: str) -> str:
        file = self.splits[split].labels
        return self._key(file, split, self.keys.labels, LABELS, _may_be_labels)

    def _key(
        self, file: Hdf5File, split: str, given: str | None, usual: str, fits: Callable[[Any], bool]
    ) -> str:
        """Return the given key, else the default one, else the only dataset that fits."""
        key = (given or usual).replace("{split}", split)
        if given or file.has(key):
            return key
        fitting = [name for name, array in file.arrays().items() if name != CLASSES and fits(array)]
        return fitting[0] if len(fitting) == 1 else key

    def _array(self, split: str) -> Any:
        file, key = self.splits[split].images, self._images_key(split)
        array = file.array(key, "images")
        if array.ndim not in (3, 4) or array.dtype.kind not in "uifb":
            raise DataError(
                f"{file.path}: {key} is {array.dtype} {array.shape}, expected numbers "
                "(N, height, width, channels)"
            )
        return array

    def _sample_size(self, array: Any) -> int:
        image_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        memory.require_memory(
            2 * image_bytes, f"{self.splits['train'].images.path}: an image of {array.shape[1:]}"
        )
        return max(1, min(SAMPLE, SAMPLE_BYTES // max(1, image_bytes)))

    @cached_property
    def layout(self) -> Layout:
        array = self._array("train")
        if self._layout or array.ndim == 3:
            return self._layout or "nhwc"
        first, last = (side in CHANNELS for side in (array.shape[1], array.shape[3]))
        if first == last:
            raise DataError(
                f"{self.splits['train'].images.path}: the channel dimension of {array.shape} is "
                "ambiguous; set `data.layout` to nhwc or nchw"
            )
        return "nchw" if first else "nhwc"

    def _shape(self, name: str) -> Shape:
        sides = self._array(name).shape[1:]
        if len(sides) == 2:
            return Shape(1, *sides)
        return Shape(*sides) if self.layout == "nchw" else Shape(sides[2], *sides[:2])


def _may_be_images(array: Any) -> bool:
    return array.ndim in (3, 4) and array.dtype.kind in "uifb" and max(array.shape[1:]) > 1


def _may_be_labels(array: Any) -> bool:
    flat = array.size == max(array.shape, default=0)
    return array.ndim > 0 and (flat or array.ndim == 2) and array.dtype.kind in "uifbOS"


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def hdf5(
    root: Path,
    download: bool,
    *,
    path: PathOrUri | None = None,
    train_file: SafePath = SIGNS[0],
    train_labels_file: SafePath | None = None,
    val_file: SafePath | None = None,
    val_labels_file: SafePath | None = None,
    test_file: SafePath | None = SIGNS[1],
    test_labels_file: SafePath | None = None,
    images: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
    test: Share = 0.2,
    layout: Layout | None = None,
    max_value: MaxValue | None = None,
) -> Source:
    """Build a source of HDF5 arrays; the default files are those of SIGNS.

    A `*_labels_file` is needed if the labels are not in the images' file. `test` is the share
    held out of train, by class, without a `test_file`.
    """
    files: dict[str, tuple[str | None, str | None]] = {
        "train": (train_file, train_labels_file),
        "val": (val_file, val_labels_file),
        "test": (test_file, test_labels_file),
    }
    if train_file != SIGNS[0] and test_file == SIGNS[1]:  # the default of SIGNS, not of this data
        del files["test"]
    folder = root / (path or "")
    splits = {}
    for name, (file, labels_file) in files.items():
        if file:
            handle = Hdf5File(folder / file)
            labels_handle = Hdf5File(folder / labels_file) if labels_file else handle
            splits[name] = SplitFiles(handle, labels_handle)
    return Hdf5(splits, Keys(images, labels, classes), test, layout, max_value)
