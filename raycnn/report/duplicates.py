"""Pairs of images with equal or almost equal pixels, as cards of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycnn.data.inspect.survey import Duplicates, Occurrence, find_duplicates
from raycnn.report import images
from raycnn.report.images import ReportInput, Thumbnail
from raycnn.report.page import clip

MAX_PAIRS = 12  # shown
MAX_IMAGES = 10_000  # with more images, near-duplicates take too long for every report


@dataclass(frozen=True)
class DuplicateSide:
    """One image of a pair."""

    image: Thumbnail
    split: str
    label: str
    file: str


@dataclass(frozen=True)
class PairCard:
    """Two images that are duplicates of each other."""

    sides: list[DuplicateSide]
    difference: float
    """0 for equal pixels."""
    kind: str
    """`leak` if they are in two splits, `two labels` if in two classes, else empty."""


@dataclass(frozen=True)
class DuplicateSection:
    """The duplicates among a run's images, as the report shows them."""

    exact: int
    """Number of images that occur more than once."""
    near: int | None
    """Number of pairs of near-duplicates; None if they were not searched for."""
    leaks: int
    """Number of those that occur in two splits."""
    pairs: list[PairCard]


def section(report_input: ReportInput) -> DuplicateSection:
    """Find the duplicates of a run's images; pairs across splits or classes come first."""
    splits = report_input.splits
    images_by_split = {
        split: (splits.cache.splits[source_split], rows)
        for split, (source_split, rows) in splits.members.items()
    }
    search_near = sum(len(rows) for _, rows in images_by_split.values()) <= MAX_IMAGES
    same, near = find_duplicates(images_by_split, splits.classes, search_near)
    ordered = sorted([*same, *near], key=lambda d: (not d.across_splits, not d.across_classes))
    pairs = [_card(report_input, duplicates) for duplicates in ordered[:MAX_PAIRS]]
    leaks = sum(duplicates.across_splits for duplicates in ordered)
    return DuplicateSection(len(same), len(near) if search_near else None, leaks, pairs)


def _card(report_input: ReportInput, duplicates: Duplicates) -> PairCard:
    by_label = "two labels" if duplicates.across_classes else ""
    return PairCard(
        [_side(report_input, occurrence) for occurrence in _two(duplicates.occurrences)],
        duplicates.difference,
        "leak" if duplicates.across_splits else by_label,
    )


def _two(occurrences: Sequence[Occurrence]) -> tuple[Occurrence, Occurrence]:
    """Return the first occurrence, and the one that differs most from it in split and label."""
    first = occurrences[0]
    other = max(occurrences[1:], key=lambda o: (o.split != first.split, o.label != first.label))
    return first, other


def _side(report_input: ReportInput, occurrence: Occurrence) -> DuplicateSide:
    inputs = report_input.inputs(occurrence.split, np.array([occurrence.row]))
    pixels = images.pixels_of(inputs, report_input.splits.pipeline)[0]
    thumbnail = images.thumbnail(pixels)
    return DuplicateSide(
        thumbnail, occurrence.split, clip(occurrence.label, 40), clip(occurrence.name)
    )
