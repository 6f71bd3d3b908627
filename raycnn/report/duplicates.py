"""Pairs of images with equal or almost equal pixels, as cards of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycnn.data.inspect.survey import Duplicates, Occurrence, find_duplicates
from raycnn.report import images
from raycnn.report.images import ReportInput, Thumbnail
from raycnn.report.page import clip

SHOWN = 12  # pairs
SURVEYED = 10_000  # above so many images near-duplicates take too long for every report


@dataclass(frozen=True)
class Side:
    """One image of a pair."""

    image: Thumbnail
    split: str
    label: str
    file: str


@dataclass(frozen=True)
class PairCard:
    """Two images that are duplicates of each other."""

    sides: list[Side]
    difference: float
    """0 for equal pixels."""
    fault: str
    """`leak` for two splits, `two labels` for two classes, else empty."""


@dataclass(frozen=True)
class DuplicateSection:
    exact: int
    """Number of images that occur more than once."""
    near: int | None
    """Number of pairs of near-duplicates; None where they were not searched for."""
    leaks: int
    """Number of those that occur in two splits."""
    pairs: list[PairCard]


def section(subject: ReportInput) -> DuplicateSection:
    """Find the duplicates of a run's images; pairs across splits or classes come first."""
    splits = subject.splits
    rows = {split: (splits.store.splits[s], own) for split, (s, own) in splits.members.items()}
    search_near = sum(len(own) for _, own in rows.values()) <= SURVEYED
    same, near = find_duplicates(rows, splits.classes, search_near)
    found = sorted([*same, *near], key=lambda d: (not d.across_splits, not d.across_classes))
    pairs = [_card(subject, duplicates) for duplicates in found[:SHOWN]]
    leaks = sum(duplicates.across_splits for duplicates in found)
    return DuplicateSection(len(same), len(near) if search_near else None, leaks, pairs)


def _card(subject: ReportInput, found: Duplicates) -> PairCard:
    fault = "leak" if found.across_splits else "two labels" if found.across_classes else ""
    return PairCard(
        [_side(subject, place) for place in _two(found.occurrences)], found.difference, fault
    )


def _two(places: Sequence[Occurrence]) -> tuple[Occurrence, Occurrence]:
    """Return the first occurrence, and the one that differs most from it in split and label."""
    first = places[0]
    other = max(places[1:], key=lambda o: (o.split != first.split, o.label != first.label))
    return first, other


def _side(subject: ReportInput, place: Occurrence) -> Side:
    inputs = subject.inputs(place.split, np.array([place.row]))
    pixels = images.pixels_of(inputs, subject.splits.pipeline)[0]
    return Side(images.thumbnail(pixels), place.split, clip(place.label, 40), clip(place.name))
