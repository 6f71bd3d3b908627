"""Survey a data set: class counts, channel statistics, duplicates and near-duplicates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.cache import CachedSplit, ImageCache
from raycnn.data.inspect import near_duplicates
from raycnn.data.inspect.duplicates import SplitIndices
from raycnn.data.label_arrays import class_counts, label_name
from raycnn.shape import Shape

SplitRows = dict[str, tuple[CachedSplit, NDArray[np.int64]]]


@dataclass(frozen=True)
class Occurrence:
    """One place where an image occurs: its split, name and label."""

    split: str
    name: str
    """The name of its file, else its row."""
    label: str
    """The name of its class, or several names."""
    row: int
    """Its row in the source's split."""


@dataclass(frozen=True)
class Duplicates:
    """All occurrences of one image, or of two images that are near-duplicates."""

    occurrences: list[Occurrence]
    difference: float
    """0 for equal pixels, else the distance that `raycnn.data.inspect.near_duplicates` measures."""

    @property
    def across_splits(self) -> bool:
        return len({occurrence.split for occurrence in self.occurrences}) > 1

    @property
    def across_classes(self) -> bool:
        return len({occurrence.label for occurrence in self.occurrences}) > 1


@dataclass(frozen=True)
class Survey:
    """The facts about a data set that `raycnn data` shows."""

    shape: Shape
    classes: tuple[str, ...]
    images: dict[str, int]
    """The number of images, by split."""
    counts: dict[str, list[int]]
    """The number of images of each class, by split."""
    mean: dict[str, list[float]]
    """The mean of each channel by split, on the scale 0 to 1."""
    std: dict[str, list[float]]
    """The standard deviation of each channel by split, on the scale 0 to 1."""
    unreadable: list[str]
    """The error of each image that cannot be read."""
    warnings: list[str]
    """Messages about ignored files and converted images, with counts."""
    duplicates: list[Duplicates]
    """Images with equal pixels."""
    near_duplicates: list[Duplicates]
    """Up to MAX_PAIRS pairs, the nearest first, each with all its exact duplicates."""


def survey(cache: ImageCache, members: SplitIndices) -> Survey:
    """Survey the images of `members`, reading every image once."""
    splits = {
        name: (cache.splits[source_split], rows) for name, (source_split, rows) in members.items()
    }
    levels = {name: _levels(*split, cache.shape) for name, split in splits.items()}
    same, near = find_duplicates(splits, cache.classes)
    return Survey(
        cache.shape,
        cache.classes,
        {name: len(rows) for name, (_, rows) in splits.items()},
        {name: _counts(*split, len(cache.classes)) for name, split in splits.items()},
        {name: mean for name, (mean, _) in levels.items()},
        {name: std for name, (_, std) in levels.items()},
        cache.unreadable,
        cache.warnings,
        same,
        near,
    )


def _counts(split: CachedSplit, rows: NDArray[np.int64], classes: int) -> list[int]:
    return class_counts(split.labels[rows], classes).tolist()


def _levels(
    split: CachedSplit, rows: NDArray[np.int64], shape: Shape
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel, on the scale 0 to 1."""
    pixels = max(1, len(rows) * shape.height * shape.width)
    total, squares = split.sums[rows].sum(0).astype(np.float64) / pixels
    std = np.sqrt(np.maximum(squares - total**2, 0))
    return (total / 255).tolist(), (std / 255).tolist()


def find_duplicates(
    splits: SplitRows, classes: tuple[str, ...], search_near: bool = True
) -> tuple[list[Duplicates], list[Duplicates]]:
    """Return the exact duplicates and the near-duplicates, which need every image read once."""
    hashes = np.concatenate([split.hashes[rows] for split, rows in splits.values()])
    starts = np.cumsum([0, *(len(rows) for _, rows in splits.values())])
    _, firsts, content, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    ordered = np.split(np.argsort(content, kind="stable"), np.cumsum(counts)[:-1])

    def occurrences(image: int) -> list[Occurrence]:
        """Return all images with the same pixels as one."""
        return [occurrence(int(each)) for each in ordered[content[image]]]

    def occurrence(image: int) -> Occurrence:
        index = int(np.searchsorted(starts, image, "right")) - 1
        name, (split, rows) = list(splits.items())[index]
        row = int(rows[image - starts[index]])
        return Occurrence(name, split.name(row), label_name(split.labels[row], classes), row)

    firsts.sort()
    same = [
        Duplicates(occurrences(int(image)), 0.0) for image in firsts if counts[content[image]] > 1
    ]
    if not search_near:
        return same, []
    thumbs = []
    for (split, rows), start in zip(splits.values(), starts, strict=False):
        in_split = firsts[(firsts >= start) & (firsts < start + len(rows))]
        if len(in_split):
            thumbs.append(near_duplicates.thumbnails(split.images, rows[in_split - start]))
    near = [
        Duplicates(occurrences(int(firsts[one])) + occurrences(int(firsts[other])), difference)
        for one, other, difference in near_duplicates.near_duplicates(np.concatenate(thumbs))
    ]
    return same, near
