"""Pictures in a folder per class, below folders per split or not.

Hidden files, other files, and folders inside a class folder are ignored, and counted.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import SafePath
from raycnn.data.images.decode import (
    ENDINGS,
    FIT,
    Fit,
    ImageFormat,
    Mode,
    Named,
    Pictures,
    Rows,
    Size,
    image_format_of,
)
from raycnn.data.sources.base import Share, Source, Split, common_class_names, hold_out
from raycnn.errors import DataError
from raycnn.shape import Shape

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
          "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """The pictures of one split, class by class, each class by name."""

    place: bytes
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    """(N,) below the place."""
    labels: NDArray[np.int64]
    """(N,)"""
    aside: int
    """How many files and folders are ignored."""

    def pictures(self, rows: Rows) -> list[Named]:
        paths = (os.path.join(self.place, name) for name in self.names[rows].tolist())
        return [(path.decode("utf-8", "backslashreplace"), os.fsdecode(path)) for path in paths]


class Folder:
    def __init__(
        self, place: Path, share: float, size: Size | None, fit: Fit, mode: Mode | None
    ) -> None:
        self.place, self.share = place, share
        self.size, self.fit, self.mode = size, fit, mode

    @cached_property
    def listings(self) -> dict[str, Listing]:
        try:
            folders = _split_folders(self.place)
            return {name: _listing(self.place, folder) for name, folder in folders.items()}
        except OSError as error:
            raise DataError(f"cannot read the data: {error}") from None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        lists = {name: listing.classes for name, listing in self.listings.items()}
        return common_class_names(lists, self.place)

    @cached_property
    def frame(self) -> ImageFormat:
        return image_format_of(self.size, self.fit, self.mode, self._all())

    def _all(self) -> Iterator[Named]:
        train = self.listings["train"]
        for row in range(len(train.names)):
            yield from train.pictures(np.array([row]))

    @property
    def shape(self) -> Shape:
        return self.frame.shape

    def files(self) -> Sequence[str]:
        return [
            os.fsdecode(os.path.join(listing.place, name))
            for listing in self.listings.values()
            for name in listing.names.tolist()
        ]

    def read(self) -> dict[str, Split]:
        assert self.classes  # the splits agree on them
        splits = {name: self._split(listing) for name, listing in self.listings.items()}
        return splits if "test" in splits else splits | hold_out(splits["train"], self.share)

    def _split(self, listing: Listing) -> Split:
        images = Pictures(len(listing.names), listing.pictures, self.frame)
        place = listing.place.decode("utf-8", "backslashreplace")
        aside = f"{place}: hidden files, other files and folders, ignored: {listing.aside:,}"
        return Split(images, listing.labels, listing.names, aside if listing.aside else "")


def _split_folders(place: Path) -> dict[str, str]:
    """For each split its folder: one named so that holds folders, else train is the whole place."""
    named = [name for name in _folders(place) if name in SPLITS and _folders(place / name)]
    if not named:
        return {"train": "."}
    splits: dict[str, str] = {}
    for name in named:
        if splits.setdefault(SPLITS[name], name) != name:
            raise DataError(
                f"{place} has two {SPLITS[name]} splits: {splits[SPLITS[name]]}, {name}"
            )
    if "train" not in splits:
        raise DataError(f"{place} has {', '.join(named)}, but no train folder beside it")
    return dict(sorted(splits.items(), key=lambda split: split[0] != "train"))


def _folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _listing(place: Path, folder: str) -> Listing:
    """Raises DataError when there are no classes, or a class without a picture."""
    top = place / folder
    classes = _folders(top)
    names: list[bytes] = []
    counts: list[int] = []
    aside = len(os.listdir(top)) - len(classes)
    for name in classes:
        with os.scandir(top / name) as entries:
            pictures, others = _sorted_out(entries)
        if not pictures:
            raise DataError(f"{top / name}: no pictures in this class folder")
        names += (os.fsencode(os.path.join(name, picture)) for picture in pictures)
        counts.append(len(pictures))
        aside += others
    if not classes:
        raise DataError(f"{top}: no class folders, each with the pictures of one class")
    labels = np.repeat(np.arange(len(classes)), counts)
    return Listing(os.fsencode(top), tuple(classes), np.array(names), labels, aside)


def _sorted_out(entries: Iterator[os.DirEntry[str]]) -> tuple[list[str], int]:
    """The pictures by name, and how many other things there are."""
    pictures, others = [], 0
    for entry in entries:
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or ending not in ENDINGS or not entry.is_file():
            others += 1
        else:
            pictures.append(entry.name)
    return sorted(pictures), others


def folder(
    root: Path,
    download: bool,
    *,
    path: SafePath | None = None,
    test: Share = 0.2,
    size: Size | None = None,
    fit: Fit = FIT,
    mode: Mode | None = None,
) -> Source:
    """`test` is the share held out of train, by class, where there is no test folder."""
    return Folder(root / (path or ""), test, size, fit, mode)
