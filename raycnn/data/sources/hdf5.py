"""Images and labels as arrays in HDF5 files, a file per split, as the SIGNS data set has them.

Images are (N, H, W, C), (N, C, H, W) or (N, H, W), whole numbers 0 to 255 or fractions 0 to 1.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import SafePath
from raycnn.data.sources.base import (
    Share,
    Source,
    Split,
    check_labels,
    common_class_names,
    hold_out,
    numbered_class_names,
)
from raycnn.errors import DataError, SpecError
from raycnn.shape import Shape

Layout = Literal["nhwc", "nchw"]
White = Literal[1, 255]

CHANNELS = {1, 3, 4}
LOOKED_AT = 64  # images that tell whether fractions go to 1 or to 255


class Handle:
    """An HDF5 file, opened by each process for itself and only when it is read."""

    def __init__(self, path: Path):
        self.path = path
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def array(self, key: str, option: str) -> Any:
        """A dataset of the file. Raises DataError with those there are, and the option for it."""
        found = self._safely(lambda file: file.get(key))
        if not isinstance(found, h5py.Dataset):
            keys: list[str] = []
            self._safely(lambda file: file.visititems(lambda name, item: _note(keys, name, item)))
            raise DataError(
                f"{self.path} has no {key!r} but {', '.join(keys) or 'nothing'}: "
                f"`data.{option}` names the key"
            )
        return found

    def take(self, key: str, option: str, rows: Any) -> NDArray[Any]:
        array = self.array(key, option)
        return self._safely(lambda _: np.asarray(array[rows]))

    def _safely(self, use: Callable[[Any], Any]) -> Any:
        try:
            if not self._opened or self._opened[0] != os.getpid():
                self._opened = os.getpid(), h5py.File(self.path, "r", locking="best-effort")
            return use(self._opened[1])
        except (OSError, RuntimeError, TypeError) as error:
            raise DataError(f"cannot read {self.path} as HDF5: {error}") from None


def _note(keys: list[str], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        keys.append(name)


@dataclass(frozen=True)
class Arrays:
    """The images of a file, made (B, H, W, C) uint8 when they are asked for."""

    file: Handle
    key: str
    layout: Layout
    white: int

    def __len__(self) -> int:
        return len(self.file.array(self.key, "images"))

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Raises DataError for a value that is no brightness."""
        unique, back = np.unique(rows, return_inverse=True)  # HDF5 wants rising rows, each once
        run = len(unique) and unique[-1] - unique[0] + 1 == len(unique)
        some = slice(unique[0], unique[-1] + 1) if run else unique
        pixels = self.file.take(self.key, "images", some)[back]
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if self.layout == "nchw":
            pixels = pixels.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(self._bytes(pixels, rows))

    def _bytes(self, pixels: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if pixels.dtype == np.uint8:
            return pixels
        right = ((pixels >= 0) & (pixels <= self.white)).all(axis=(1, 2, 3))  # no NaN is
        if not right.all():
            place = int(np.argmin(right))
            raise DataError(
                f"{self.file.path}: row {rows[place]} of {self.key} goes from "
                f"{pixels[place].min()} to {pixels[place].max()}, where 0 to {self.white} are due: "
                "`data.white` is 1 or 255"
            )
        return np.rint(pixels * (255 / self.white)).astype(np.uint8)


@dataclass(frozen=True)
class Keys:
    """Where a file has what; `{split}` stands for train or test."""

    images: str
    labels: str
    classes: str | None


class Hdf5:
    def __init__(
        self,
        paths: dict[str, Path],
        keys: Keys,
        share: float,
        layout: Layout | None,
        white: White | None,
    ):
        self.opened = {name: Handle(path) for name, path in paths.items()}
        self.keys, self.share, self._layout, self._white = keys, share, layout, white

    def files(self) -> list[Path]:
        return [file.path for file in self.opened.values()]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        key = self.keys.classes
        if not key:
            return numbered_class_names([self._numbers("train")], self.opened["train"].path)
        lists = {name: file.take(key, "classes", ...) for name, file in self.opened.items()}
        plain = {name: tuple(map(_text, found.ravel())) for name, found in lists.items()}
        return common_class_names(plain, self.opened["train"].path.parent)

    @cached_property
    def shape(self) -> Shape:
        return self._shape("train")

    def read(self) -> dict[str, Split]:
        splits = {name: self._split(name) for name in self.opened}
        return splits if "test" in splits else hold_out(splits["train"], self.share)

    def _split(self, name: str) -> Split:
        path = self.opened[name].path
        images = Arrays(self.opened[name], self._key(name), self.layout, self._white_of(name))
        labels = check_labels(self._numbers(name), len(self.classes), path)
        if len(images) != len(labels):
            raise DataError(f"{path} has {len(images):,} images and {len(labels):,} labels")
        if self._shape(name) != self.shape:
            raise DataError(f"{path}: images of {self._shape(name)}, where {self.shape} are due")
        return Split(images, labels)

    def _key(self, name: str) -> str:
        return self.keys.images.replace("{split}", name)

    def _numbers(self, name: str) -> NDArray[Any]:
        """The labels (N,), also of (N, 1) or (1, N)."""
        key = self.keys.labels.replace("{split}", name)
        labels = self.opened[name].take(key, "labels", ...)
        if labels.size != max(labels.shape, default=0):
            raise DataError(f"{self.opened[name].path}: {key} is {labels.shape}, where (N,) is due")
        return (
            labels.ravel() if labels.dtype.kind != "O" else np.array([*map(_text, labels.ravel())])
        )

    def _array(self, name: str) -> Any:
        array = self.opened[name].array(self._key(name), "images")
        if array.ndim not in (3, 4) or array.dtype.kind not in "uif":
            raise DataError(
                f"{self.opened[name].path}: {self._key(name)} is {array.dtype} {array.shape}, "
                "where numbers (N, height, width, channels) are due"
            )
        return array

    @cached_property
    def layout(self) -> Layout:
        array = self._array("train")
        if self._layout or array.ndim == 3:
            return self._layout or "nhwc"
        first, last = (side in CHANNELS for side in (array.shape[1], array.shape[3]))
        if first == last:
            raise DataError(
                f"{self.opened['train'].path}: which side of {array.shape} is the channels is not "
                "clear: `data.layout` is nhwc or nchw"
            )
        return "nchw" if first else "nhwc"

    def _shape(self, name: str) -> Shape:
        sides = self._array(name).shape[1:]
        if len(sides) == 2:
            return Shape(1, *sides)
        return Shape(*sides) if self.layout == "nchw" else Shape(sides[2], *sides[:2])

    def _white_of(self, name: str) -> int:
        """The value of white. Raises SpecError where whole numbers are said to end at 1."""
        fractions = self._array(name).dtype.kind == "f"
        if self._white == 1 and not fractions:
            raise SpecError(
                f"the images of {self.opened[name].path} are whole numbers", "data.white"
            )
        if self._white or not fractions:
            return self._white or 255
        some = self.opened[name].take(self._key(name), "images", slice(LOOKED_AT))
        return 1 if some.max(initial=0) <= 1 else 255


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def hdf5(
    root: Path,
    download: bool,
    *,
    path: SafePath | None = None,
    train_file: SafePath = "train_signs.h5",
    test_file: SafePath | None = "test_signs.h5",
    images: str = "{split}_set_x",
    labels: str = "{split}_set_y",
    classes: str | None = "list_classes",
    test: Share = 0.2,
    layout: Layout | None = None,
    white: White | None = None,
) -> Source:
    """`test` is the share held out of train, by class, where `test_file` is null; without a key of
    `classes` they are named by their numbers.
    """
    files = {"train": train_file} | ({"test": test_file} if test_file else {})
    paths = {name: root / (path or "") / file for name, file in files.items()}
    return Hdf5(paths, Keys(images, labels, classes), test, layout, white)
