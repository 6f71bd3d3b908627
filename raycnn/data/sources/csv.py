"""Images in a folder, and CSV files with the labels of each: one class, or any number of classes.

A row has the name of an image, and its labels in one column, or a 0 or 1 in a column per class.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import PathOrUri, SafePath
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
)
from raycnn.data.sources.base import (
    Share,
    Source,
    Split,
    listed,
    spread_rows,
    unreadable,
    with_test,
)
from raycnn.data.sources.folder import SPLIT_WORDS, walk_pictures
from raycnn.data.sources.labels import Column, Labels, encode_label_sets, encode_labels
from raycnn.data.sources.pictures import PictureOptions, PictureSource
from raycnn.errors import DataError, unknown

LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "target", "tags")
SEPARATORS = ("|", ";", ",")  # tried in this order between the labels of an image; else a space
MARKS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


class Columns(NamedTuple):
    """The names of the columns of a table."""

    file: str
    label: str | None
    """The column of labels; None if each class has a column of its own."""
    classes: tuple[str, ...] = ()


class CsvTable:
    """The rows of a CSV file."""

    def __init__(self, path: Path):
        self.path = path
        self.header, self.rows = _read_rows(path)

    def find_columns(self, file: str | None, label: str | None) -> Columns:
        """Return the names of the columns; those that are None are detected."""
        file = self._check_column(file, "file") if file else self.header[0]
        others = [name for name in self.header if name != file]
        if not others:
            raise DataError(f"{self.path} has only one column, {file!r}, and no labels")
        if label:
            return Columns(file, self._check_column(label, "label"))
        candidates = [name for name in others if name.lower() in LABEL_COLUMNS]
        if candidates or len(others) < 2:
            return Columns(file, (candidates or others)[0])
        return Columns(file, None, tuple(others))

    def cells(self, name: str) -> list[str]:
        """Return a column. Raises DataError if there is no such column."""
        index = self.header.index(self._check_column(name))
        return [row[index].strip() for row in self.rows]

    def marks(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the 0s and 1s (N, K) of a column per class. Raises DataError for anything else."""
        columns = [self._marks(name) for name in classes]
        return np.stack(columns, 1)

    def _marks(self, name: str) -> NDArray[np.int64]:
        cells = self.cells(name)
        marks = [MARKS.get(cell.lower(), -1) for cell in cells]
        if -1 in marks:
            row = marks.index(-1)
            raise DataError(
                f"{self.path}: row {row} has {cells[row]!r} in column {name!r}, expected 0 or 1; "
                "if one column has all labels, set `data.label` to its name"
            )
        return np.array(marks, np.int64)

    def _check_column(self, name: str, option: str = "") -> str:
        """Return the name of a column. Raises DataError if there is none of this name."""
        if name in self.header:
            return name
        key = f"data.{option}: " if option else ""
        raise DataError(f"{self.path}: {key}{unknown('column', name, self.header)}")


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file, separated by comma, semicolon or tab."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            lines = list(reader(file, delimiter=max(",;\t", key=first.count), strict=True))
    except (OSError, UnicodeDecodeError, CsvError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    header, *rows = [line for line in lines if line] or [[]]
    header = [name.strip() for name in header]
    if not header or len({*header}) < len(header):
        raise DataError(f"{path}: the columns {header} need distinct names")
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise DataError(f"{path}: row {row} has {len(cells)} cells, not {len(header)}")
    if not rows:
        raise DataError(f"{path} has no rows")
    return header, rows


@dataclass(frozen=True)
class LabelOptions:
    """Options for reading labels."""

    file: str | None
    label: str | None
    separator: str | None
    multi_label: bool


class Csv(PictureSource):
    """Images in a folder, with CSV files of their labels."""

    def __init__(
        self,
        root: Path,
        files: dict[str, str | None],
        options: LabelOptions,
        share: float,
        pictures: PictureOptions,
    ) -> None:
        super().__init__(pictures)
        self.root, self.label_files, self.options, self.share = root, files, options, share

    @property
    def multi_label(self) -> bool:
        return self.options.multi_label

    @cached_property
    def tables(self) -> dict[str, CsvTable]:
        paths = {split: self._find(split) for split in SPLIT_WORDS}
        return {split: CsvTable(path) for split, path in paths.items() if path}

    @cached_property
    def columns(self) -> Columns:
        return self.tables["train"].find_columns(self.options.file, self.options.label)

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The path of each image of the splits that have labels, relative to the folder."""
        try:
            index = _index(walk_pictures(self.root).pictures)
        except OSError as error:
            raise unreadable(error) from None
        return {name: self._paths(self.tables[name], index) for name in self.labels.splits}

    @cached_property
    def labels(self) -> Labels:
        _, label, classes = self.columns
        if self.multi_label:
            columns = {name: [self._label_lists(table)] for name, table in self.tables.items()}
            labels = encode_label_sets(columns, classes or None, self.root)
            if (labels.splits["train"].sum(1) == 1).all():
                labels = replace(labels, warnings=(*labels.warnings, self._single_label_warning()))
            return labels
        columns = {name: [self._column(table)] for name, table in self.tables.items()}
        try:
            return encode_labels(columns, classes or None, self.root)
        except DataError as error:
            hint = "" if label else "; set `data.multi_label: true` for any number of classes"
            raise DataError(f"{error}{hint}") from None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def _sample(self) -> list[NamedImage]:
        return self._pictures("train", spread_rows(len(self.names["train"]), SAMPLE))

    def files(self) -> list[str]:
        images = [os.path.join(self.root, name) for names in self.names.values() for name in names]
        return [*(str(table.path) for table in self.tables.values()), *dict.fromkeys(images)]

    def read(self) -> dict[str, Split]:
        splits = {name: self._split(name) for name in self.labels.splits}
        splits["train"] = replace(splits["train"], warnings=self.labels.warnings)
        return with_test(splits, self.share)

    def _split(self, name: str) -> Split:
        names = self.names[name]
        encoded = np.array([os.fsencode(path) for path in names], bytes)
        images = Pictures(len(names), partial(self._pictures, name), self.image_format)
        return Split(images, self.labels.splits[name], encoded)

    def _pictures(self, split: str, rows: Rows) -> list[NamedImage]:
        paths = (os.path.join(self.root, self.names[split][row]) for row in rows.tolist())
        return [(os.fsencode(path).decode("utf-8", "backslashreplace"), path) for path in paths]

    def _find(self, split: str) -> Path | None:
        """Return the CSV file of a split, if it has one.

        Raises DataError if a file that the options name, or the one of train, is missing.
        """
        try:
            tables = {path.name.lower(): path for path in self.root.glob("*.[cC][sS][vV]")}
        except OSError as error:
            raise unreadable(error) from None
        if name := self.label_files[split]:
            if not (self.root / name).is_file():
                message = unknown("file", name, [path.name for path in tables.values()])
                raise DataError(f"{self.root}: data.{split}_labels: {message}")
            return self.root / name
        words = [*SPLIT_WORDS[split], *(["labels"] if split == "train" else [])]
        matches = [tables[f"{word}.csv"] for word in words if f"{word}.csv" in tables]
        if matches or split != "train":
            return matches[0] if matches else None
        if len(tables) == 1:
            return next(iter(tables.values()))
        names = listed(sorted(path.name for path in tables.values()))
        raise DataError(f"{self.root} has no train.csv ({names}); set `data.train_labels`")

    def _paths(self, table: CsvTable, index: dict[str, list[str]]) -> list[str]:
        """Return the path of the image of each row. Raises DataError if it has none or several."""
        all_paths = []
        for row, name in enumerate(table.cells(self.columns.file)):
            paths = index.get(os.path.normpath(name) if name else "", [])
            if len(paths) != 1:
                problem = f"is ambiguous ({listed(paths)})" if paths else "is not a picture"
                raise DataError(f"{table.path}: row {row}: {name!r} {problem} in {self.root}")
            all_paths += paths
        return all_paths

    def _column(self, table: CsvTable) -> Column:
        """Return the label of each image, or (N, K) with a 1 for each of its classes."""
        _, label, classes = self.columns
        if self._is_unlabeled(table):
            return Column(str(table.path), np.full(len(table.rows), None, object))
        if label is None:
            return Column(str(table.path), table.marks(classes))
        cells = [cell or None for cell in table.cells(label)]
        are_numbers = all(cell and cell.isdecimal() for cell in cells)
        return Column(str(table.path), np.array(cells, np.int64 if are_numbers else object))

    def _label_lists(self, table: CsvTable) -> Column:
        """Return the list of labels of each image."""
        _, label, classes = self.columns
        values = np.empty(len(table.rows), object)
        if self._is_unlabeled(table):
            return Column(str(table.path), values)
        if label is None:
            marks = table.marks(classes)
            lists: list[list[Any]] = [[classes[k] for k in np.flatnonzero(row)] for row in marks]
        else:
            lists = [_parts(cell, self._separator) for cell in table.cells(label)]
            if all(part.isdecimal() for parts in lists for part in parts):
                lists = [[int(part) for part in parts] for parts in lists]
        for row, parts in enumerate(lists):
            values[row] = parts
        return Column(str(table.path), values)

    @cached_property
    def _separator(self) -> str:
        if self.options.separator:
            return self.options.separator
        text = "".join(self.tables["train"].cells(self.columns.label or ""))
        return next((mark for mark in SEPARATORS if mark in text), " ")

    def _is_unlabeled(self, table: CsvTable) -> bool:
        """Return whether a table other than train's has no column of labels at all."""
        _, label, classes = self.columns
        label_columns = {*classes} if label is None else {label}
        return table is not self.tables["train"] and not label_columns & {*table.header}

    def _single_label_warning(self) -> str:
        return (
            f"{self.root}: every image has one label; set `data.multi_label: false` if classes "
            "exclude one another, to measure accuracy"
        )


def _parts(cell: str, separator: str) -> list[Any]:
    """Return the labels in a cell."""
    return [part for text in cell.split(separator) if (part := text.strip())]


def _index(pictures: Sequence[str]) -> dict[str, list[str]]:
    """Return the pictures by path and by file name, each with and without extension.

    If a key stands for pictures in several of these ways, the first one counts.
    """
    index: dict[str, list[str]] = {}
    names = [os.path.basename(path) for path in pictures]
    for keys in (pictures, [*map(_stem, pictures)], names, [*map(_stem, names)]):
        by_key: dict[str, list[str]] = defaultdict(list)
        for key, path in zip(keys, pictures, strict=True):
            by_key[key].append(path)
        for key, paths in by_key.items():
            index.setdefault(key, paths)
    return index


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def csv(
    root: Path,
    download: bool,
    *,
    path: PathOrUri | None = None,
    train_labels: SafePath | None = None,
    val_labels: SafePath | None = None,
    test_labels: SafePath | None = None,
    file: str | None = None,
    label: str | None = None,
    separator: str | None = None,
    multi_label: bool = True,
    test: Share = 0.2,
    size: TargetSize | None = None,
    fit: Fit = FIT,
    mode: Mode | None = None,
    max_value: MaxValue | None = None,
) -> Source:
    """Build a source of images in a folder and their labels in CSV files.

    `*_labels` are CSV files in `path`, by default `train.csv` and the like; `file` and `label` name
    their columns. `test` is the share held out of train if there is no file for test.
    """
    files = {"train": train_labels, "val": val_labels, "test": test_labels}
    options = LabelOptions(file, label, separator, multi_label)
    pictures = PictureOptions(size, fit, mode, max_value)
    return Csv(root / (path or ""), files, options, test, pictures)
