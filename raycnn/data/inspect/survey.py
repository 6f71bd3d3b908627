"""What lies in a data set: counts, brightness, and images that stand in it more than once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.store import Store, Stored
from raycnn.data.inspect import near_duplicates
from raycnn.data.inspect.duplicates import SplitIndices
from raycnn.shape import Shape

Parts = dict[str, tuple[Stored, NDArray[np.int64]]]


@dataclass(frozen=True)
class Occurrence:
    """Where one image stands."""

    split: str
    name: str
    """Of its file, else its row."""
    label: str


@dataclass(frozen=True)
class Duplicates:
    """One image, in all places where it stands, or two that are nearly one."""

    places: list[Occurrence]
    difference: float
    """0 for the same pixels, else as `raycnn.data.inspect.near_duplicates` measures it."""

    @property
    def across_splits(self) -> bool:
        return len({place.split for place in self.places}) > 1

    @property
    def across_classes(self) -> bool:
        return len({place.label for place in self.places}) > 1


@dataclass(frozen=True)
class Survey:
    shape: Shape
    classes: tuple[str, ...]
    counts: dict[str, list[int]]
    """Of each split the images of each class."""
    mean: dict[str, list[float]]
    """Of each split, for each channel, on the scale 0 to 1."""
    std: dict[str, list[float]]
    left_out: list[str]
    """What is wrong with each image that cannot be read."""
    aside: list[str]
    """What lies beside the images and is ignored."""
    same: list[Duplicates]
    """Pixel for pixel."""
    near: list[Duplicates]
    """Nearly, the nearest first, `alike.MOST` at most; each with all of the same pixels."""


def survey(store: Store, members: SplitIndices) -> Survey:
    """Of the rows of the store's splits that `members` names; every image is read once."""
    parts = {name: (store.splits[stored], rows) for name, (stored, rows) in members.items()}
    levels = {name: _levels(*part, store.shape) for name, part in parts.items()}
    same, near = _twins(parts, store.classes)
    return Survey(
        store.shape,
        store.classes,
        {name: _counts(*part, len(store.classes)) for name, part in parts.items()},
        {name: mean for name, (mean, _) in levels.items()},
        {name: std for name, (_, std) in levels.items()},
        store.left_out,
        store.aside,
        same,
        near,
    )


def _counts(stored: Stored, rows: NDArray[np.int64], classes: int) -> list[int]:
    return np.bincount(stored.labels[rows], minlength=classes).tolist()


def _levels(
    stored: Stored, rows: NDArray[np.int64], shape: Shape
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the scale 0 to 1."""
    pixels = max(1, len(rows) * shape.height * shape.width)
    total, squares = stored.sums[rows].sum(0).astype(np.float64) / pixels
    std = np.sqrt(np.maximum(squares - total**2, 0))
    return (total / 255).tolist(), (std / 255).tolist()


def _twins(parts: Parts, classes: tuple[str, ...]) -> tuple[list[Duplicates], list[Duplicates]]:
    """Those of the same pixels, and those that are nearly so."""
    hashes = np.concatenate([stored.hashes[rows] for stored, rows in parts.values()])
    starts = np.cumsum([0, *(len(rows) for _, rows in parts.values())])
    _, firsts, content, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    ordered = np.split(np.argsort(content, kind="stable"), np.cumsum(counts)[:-1])

    def places(image: int) -> list[Occurrence]:
        """All that have the pixels of an image."""
        return [place(int(each)) for each in ordered[content[image]]]

    def place(image: int) -> Occurrence:
        part = int(np.searchsorted(starts, image, "right")) - 1
        name, (stored, rows) = list(parts.items())[part]
        row = int(rows[image - starts[part]])
        return Occurrence(name, stored.name(row), classes[stored.labels[row]])

    firsts.sort()
    same = [Duplicates(places(int(image)), 0.0) for image in firsts if counts[content[image]] > 1]
    thumbs = []
    for (stored, rows), start in zip(parts.values(), starts, strict=False):
        own = firsts[(firsts >= start) & (firsts < start + len(rows))]
        if len(own):
            thumbs.append(near_duplicates.thumbnails(stored.images, rows[own - start]))
    near = [
        Duplicates(places(int(firsts[one])) + places(int(firsts[other])), difference)
        for one, other, difference in near_duplicates.near_duplicates(np.concatenate(thumbs))
    ]
    return same, near
