"""The data source `folder`: images in one folder per class, optionally in one folder per split.

Images may lie at any depth below their class folder, as in torchvision's ImageFolder. Hidden files
and files of other types are ignored and counted.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import PathOrUri
from raycnn.data.images.decode import (
    FIT,
    SAMPLE,
    Fit,
    MaxValue,
    Mode,
    NamedImage,
    Pictures,
    Rows,
    TargetSize,
    picture_endings,
)
from raycnn.data.sources.base import (
    Share,
    Source,
    Split,
    common_class_names,
    listed,
    require_two_classes,
    spread_rows,
    unreadable,
    with_test,
)
from raycnn.data.sources.pictures import PictureOptions, PictureSource
from raycnn.errors import DataError

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
# Folders that operating systems and tools leave behind, in addition to names with a leading dot.
IGNORED_NAMES = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


@dataclass
class FolderTree:
    """The images below a folder, and the counts of what is ignored."""

    pictures: list[str] = field(default_factory=list)
    """Paths relative to the folder, sorted."""
    ignored: Counter[str] = field(default_factory=Counter)
    """The number of ignored entries by reason."""


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by class and then by name."""

    folder: bytes
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    """(N,) paths relative to the folder."""
    labels: NDArray[np.int64]
    """(N,)"""
    warnings: tuple[str, ...]

    def pictures(self, rows: Rows) -> list[NamedImage]:
        paths = (os.path.join(self.folder, name) for name in self.names[rows].tolist())
        return [(_shown(path), os.fsdecode(path)) for path in paths]


class Folder(PictureSource):
    """Images in a folder per class, of one or several splits."""

    def __init__(self, root: Path, share: float, pictures: PictureOptions) -> None:
        super().__init__(pictures)
        self.root, self.share = root, share

    @cached_property
    def listings(self) -> dict[str, Listing]:
        try:
            folders, warnings = _find_splits(self.root)
            listings = {name: _list(folder) for name, folder in folders.items()}
        except OSError as error:
            raise unreadable(error) from None
        train = listings["train"]
        listings["train"] = replace(train, warnings=(*warnings, *train.warnings))
        return {name: _with_classes(listing, train, name) for name, listing in listings.items()}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return require_two_classes(self.listings["train"].classes, self.root)

    def _sample(self) -> list[NamedImage]:
        train = self.listings["train"]
        return train.pictures(spread_rows(len(train.names), SAMPLE))

    def files(self) -> Sequence[str]:
        return [
            os.fsdecode(os.path.join(listing.folder, name))
            for listing in self.listings.values()
            for name in listing.names.tolist()
        ]

    def read(self) -> dict[str, Split]:
        assert self.classes  # raises DataError for fewer than two
        splits = {name: self._split(listing) for name, listing in self.listings.items()}
        return with_test(splits, self.share)

    def _split(self, listing: Listing) -> Split:
        images = Pictures(len(listing.names), listing.pictures, self.image_format)
        return Split(images, listing.labels, listing.names, listing.warnings)


def _find_splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, and warnings about what is ignored.

    Without split folders, train is all of `root`. A single folder around all others is entered.
    """
    warnings: list[str] = []
    named = _named_splits(root, _folders(root))
    if not named and (inner := _unwrap(root)) != root:
        warnings.append(f"{root} holds only one folder: the classes are read from {inner}")
        root, named = inner, _named_splits(inner, _folders(inner))
    if not named:
        return {"train": root}, warnings
    return _choose_splits(root, named, warnings), warnings


def _unwrap(root: Path) -> Path:
    """Return the folder with several subfolders that single ones lead to, else `root`."""
    inner = root
    while len(folders := _folders(inner)) == 1 and not _holds_pictures(inner):
        inner /= folders[0]
        if _named_splits(inner, _folders(inner)):
            return inner
    return inner if len(folders) > 1 else root


def _named_splits(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the split of each folder that is named after a split and holds folders.

    Raises DataError if folders named after splits hold no class folders.
    """
    exact = {name: split for name in folders if (split := _split_of(name.lower()))}
    if named := {name: split for name, split in exact.items() if _folders(root / name)}:
        others = (root / name for name in folders if name not in exact)
        is_class = len(named) == 1 and any(map(_holds_pictures, others))
        return {} if is_class else named
    if len(exact) == len(folders) == len({*exact.values()}) > 1 and "train" in exact.values():
        raise DataError(
            f"{root}: {', '.join(exact)} hold no class folders, each with the pictures of one class"
        )
    # Else each folder must have a split in its name: seg_train and seg_test.
    parts = {name: re.split(r"[\W_]+", name.lower()) for name in folders}
    matches = {name: {*filter(None, map(_split_of, parts[name]))} for name in folders}
    is_clear = all(len(splits) == 1 and _folders(root / name) for name, splits in matches.items())
    named = {name: splits.pop() for name, splits in matches.items()} if is_clear else {}
    return named if len({*named.values()}) > 1 else {}


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_WORDS.items() if name in names), None)


def _choose_splits(root: Path, named: dict[str, str], warnings: list[str]) -> dict[str, Path]:
    """Return the folder of each split. Raises DataError for two of one split, or none for train."""
    splits: dict[str, Path] = {}
    for name, split in named.items():
        if splits.setdefault(split, root / name) != root / name:
            raise DataError(f"{root} has two {split} splits: {splits[split].name}, {name}")
    if "train" not in splits:
        raise DataError(f"{root} has {', '.join(named)}, but no train folder")
    for name in _folders(root):
        if name not in named:
            count = len(walk_pictures(root / name).pictures)
            warnings.append(f"{root / name} is not a split: {count:,} pictures ignored")
    stray = sum(1 for entry in os.scandir(root) if not entry.is_dir())
    if stray:
        warnings.append(f"{root}: files beside the splits, ignored: {stray:,}")
    return {split: splits[split] for split in SPLIT_WORDS if split in splits}


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not _is_ignored(entry.name)
        )


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_picture(entry.name) for entry in entries)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in picture_endings() and not _is_ignored(name)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def _list(top: Path) -> Listing:
    """Return the images of the class folders in `top`. Raises DataError when there are none."""
    folders = _folders(top)
    if not folders:
        raise DataError(f"{top}: no class folders, each with the pictures of one class")
    if len(folders) == 1 and len(_folders(top / folders[0])) > 1 and top.name == folders[0]:
        return _list(top / folders[0])  # seg_train/seg_train, as Kaggle unpacks it
    trees = {name: walk_pictures(top / name) for name in folders}
    names = [
        os.fsencode(os.path.join(name, picture))
        for name, tree in trees.items()
        for picture in tree.pictures
    ]
    ignored = sum((tree.ignored for tree in trees.values()), Counter())
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.name not in trees:
                ignored[_reason(entry.name)] += 1
    labels = np.repeat(np.arange(len(folders)), [len(tree.pictures) for tree in trees.values()])
    classes = tuple(unicodedata.normalize("NFC", _shown(os.fsencode(name))) for name in folders)
    if len({*classes}) < len(classes):
        raise DataError(
            f"{top} has class folders whose names differ only in their Unicode normalization"
        )
    warnings = []
    if ignored:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in ignored.most_common())
        where = _shown(os.fsencode(top))
        warnings.append(f"{where}: ignored: {ignored.total():,} ({reasons})")
    return Listing(os.fsencode(top), classes, np.array(names, bytes), labels, tuple(warnings))


def _with_classes(listing: Listing, train: Listing, split: str) -> Listing:
    """Return a split with its labels mapped to train's classes, of which some may be missing.

    Raises DataError for a class that is not in train, or that has no image in train.
    """
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
    if listing is train or split == "train":
        if empty:
            folder = Path(os.fsdecode(train.folder)) / empty[0]
            reasons = walk_pictures(folder).ignored if folder.is_dir() else Counter()
            ignored = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            raise DataError(
                f"{folder}: no pictures in this class folder ({ignored or 'it is empty'})"
            )
        return listing
    if not {*listing.classes} <= {*train.classes}:
        common_class_names({"train": train.classes, split: listing.classes}, _shown(listing.folder))
    if not len(listing.names):
        raise DataError(f"{_shown(listing.folder)}: no pictures in the {split} split")
    index = {name: k for k, name in enumerate(train.classes)}
    indices = np.array([index[name] for name in listing.classes])
    lacking = sorted({*train.classes} - {*listing.classes} | {*empty})
    warnings = listing.warnings
    if lacking:
        text = f"{split} has no pictures of {len(lacking):,} classes: {listed(lacking)}"
        warnings = (*warnings, text)
    labels = indices[listing.labels]
    return replace(listing, classes=train.classes, labels=labels, warnings=warnings)


def walk_pictures(top: Path) -> FolderTree:
    """Find the images below a folder, following links but not into a folder above."""
    tree = FolderTree()
    _walk_into(tree, os.fspath(top), "", frozenset())
    tree.pictures.sort()
    return tree


def _walk_into(tree: FolderTree, folder: str, below: str, above: frozenset[str]) -> None:
    real = os.path.realpath(folder)
    if real in above:
        tree.ignored["links to a folder above"] += 1
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                tree.ignored["hidden"] += 1
            elif entry.is_dir():
                _walk_into(tree, entry.path, os.path.join(below, entry.name), above | {real})
            elif not _is_picture(entry.name):
                tree.ignored[_reason(entry.name)] += 1
            elif entry.is_file():
                tree.pictures.append(os.path.join(below, entry.name))
            else:
                tree.ignored["links to nothing"] += 1


def _reason(name: str) -> str:
    if _is_ignored(name):
        return "hidden"
    return f"of type {os.path.splitext(name)[1].lower() or '(none)'}"


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def folder(
    root: Path,
    download: bool,
    *,
    path: PathOrUri | None = None,
    test: Share = 0.2,
    size: TargetSize | None = None,
    fit: Fit = FIT,
    mode: Mode | None = None,
    max_value: MaxValue | None = None,
) -> Source:
    """Build a source of one folder per class.

    `test` is the share held out of train, by class, if there is no test folder.
    """
    return Folder(root / (path or ""), test, PictureOptions(size, fit, mode, max_value))
