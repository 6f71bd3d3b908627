"""Convert labels to class indices: integers, integral floats, booleans, one-hot rows, or names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycnn.data.label_arrays import LabelArray
from raycnn.data.sources.base import listed, require_two_classes
from raycnn.errors import DataError
from raycnn.runtime import memory

MAX_CLASSES = 100_000  # a larger label without class names is taken for a mistake
UNLABELED = -1  # Hugging Face's value for withheld labels

RawLabels = NDArray[Any]


class Column(NamedTuple):
    """The labels of one file."""

    file: str
    values: RawLabels
    """(N,), or (N, K) one-hot."""


@dataclass(frozen=True)
class Labels:
    """The encoded labels of all splits of a source, and its class names."""

    classes: tuple[str, ...]
    splits: dict[str, LabelArray]
    """Class indices (N,), or multi-label (N, K), of each split that has labels."""
    warnings: tuple[str, ...]


def encode_labels(
    columns: Mapping[str, Sequence[Column]], names: tuple[str, ...] | None, source_name: object
) -> Labels:
    """Return the labels of `train` and other splits as class indices.

    Classes are `names`, or the sorted names or numbers of train. A split other than train without
    any labels is left out, with a warning. Raises DataError naming the file and row of the first
    invalid label.
    """
    warnings: list[str] = []
    plain = {
        split: [Column(file, _plain(values, file, warnings)) for file, values in files]
        for split, files in _labeled(columns, _unlabeled, source_name, warnings)
    }
    train = [column.values for column in plain["train"]]
    are_indices = all(values.dtype.kind in "iu" for values in train)
    if names is None:
        names, are_indices = _find_names(train, are_indices, source_name, warnings)
    require_two_classes(names, source_name)
    index = None if are_indices else {name: k for k, name in enumerate(names)}
    encoded = {
        split: np.concatenate([_encode(column, names, index) for column in files])
        for split, files in plain.items()
    }
    return Labels(names, encoded, tuple(dict.fromkeys(warnings)))


def encode_label_sets(
    columns: Mapping[str, Sequence[Column]], names: tuple[str, ...] | None, source_name: object
) -> Labels:
    """Return the lists of labels of `train` and other splits as (N, K) uint8.

    Class names, unlabeled splits and errors are as in `encode_labels`.
    """
    warnings: list[str] = []
    for column in (column for files in columns.values() for column in files):
        _check_lists(column)
    labeled = dict(_labeled(columns, lambda values: not any(values), source_name, warnings))
    train = [label for _, values in labeled["train"] for cell in values for label in cell or ()]
    if not train:
        raise DataError(f"{source_name}: no image has a label")
    are_indices = all(type(label) is int for label in train)
    if names is None:
        plain = np.array(train, np.int64 if are_indices else object)
        names, are_indices = _find_names([plain], are_indices, source_name, warnings)
    require_two_classes(names, source_name)
    index = {str(k) if are_indices else name: k for k, name in enumerate(names)}
    encoded = {
        split: np.concatenate([_encode_sets(column, names, index) for column in files])
        for split, files in labeled.items()
    }
    return Labels(names, encoded, tuple(dict.fromkeys(warnings)))


def _labeled(
    columns: Mapping[str, Sequence[Column]],
    unlabeled: Callable[[RawLabels], bool],
    source_name: object,
    warnings: list[str],
) -> Iterator[tuple[str, Sequence[Column]]]:
    """Yield train and each other split that has labels; append a warning for one that has none."""
    for split, files in columns.items():
        if split != "train" and all(unlabeled(column.values) for column in files):
            count = sum(len(column.values) for column in files)
            text = f"{source_name}: the {count:,} images of {split} have no labels: not used"
            warnings.append(text)
        else:
            yield split, files


def _check_lists(column: Column) -> None:
    for row, cell in enumerate(column.values):
        if cell is not None and not isinstance(cell, list):
            raise DataError(f"{column.file}: row {row} has label {cell!r}, expected a list")


def _encode_sets(
    column: Column, names: tuple[str, ...], index: dict[str, int]
) -> NDArray[np.uint8]:
    file, values = column
    memory.require_memory(len(values) * len(names), f"{file}: labels of {len(names):,} classes")
    encoded = np.zeros((len(values), len(names)), np.uint8)
    for row, cell in enumerate(values):
        for label in cell or ():
            if (k := index.get(str(label))) is None:
                raise DataError(
                    f"{file}: row {row} has label {label!r}, which is not a class ({listed(names)})"
                )
            encoded[row, k] = 1
    return encoded


def to_class_indices(labels: RawLabels, classes: int, path: object) -> NDArray[np.int64]:
    """Return integer labels (N,) as class indices. Raises DataError at the first invalid one."""
    if not len(labels):
        raise DataError(f"{path} holds no labels")
    if labels.dtype.kind not in "iu":
        values = labels.tolist()
        row = next((i for i, value in enumerate(values) if not isinstance(value, int)), 0)
        raise DataError(f"{path}: row {row} has label {values[row]!r}, which is not a class number")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: row {row} has label {labels[row]}, expected 0 to {classes - 1} "
            f"({len(wrong)} such rows)"
        )
    return labels.astype(np.int64)


def _unlabeled(values: RawLabels) -> bool:
    if values.dtype.kind == "O":
        return all(value in (None, UNLABELED, "") for value in values.ravel().tolist())
    if values.dtype.kind == "f":
        return bool((np.isnan(values) | (values == UNLABELED)).all())
    return values.dtype.kind == "i" and bool((values == UNLABELED).all())


def _plain(values: RawLabels, file: str, warnings: list[str]) -> RawLabels:
    """Return labels (N,) as integers or str."""
    if not values.size:
        raise DataError(f"{file} holds no labels")
    if values.ndim > 1:
        values = _one_axis(values, file, warnings)
    if values.dtype.kind in "OSU":
        return _from_objects(values, file)
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        integral = np.isfinite(values) & (values == np.rint(values))
        if not integral.all():
            row = int(np.argmin(integral))
            raise DataError(
                f"{file}: row {row} has label {values[row]}, which is not a class number"
            )
        return values.astype(np.int64)
    return values


def _one_axis(values: RawLabels, file: str, warnings: list[str]) -> RawLabels:
    """Return labels (N,) of (N, 1, ...), (1, N), or one-hot (N, K)."""
    if values.size == max(values.shape):
        return values.ravel()
    if values.ndim == 2 and values.dtype.kind in "biuf":
        hot = values == 1
        wrong = (hot.sum(1) != 1) | ((values != 0) & ~hot).any(1)
        if not wrong.any():
            warnings.append(f"{file}: the labels are one-hot rows of {values.shape[1]} classes")
            return hot.argmax(1)
        row = int(np.argmax(wrong))
        raise DataError(f"{file}: row {row} has label {values[row].tolist()}, which is not one-hot")
    raise DataError(f"{file}: the labels are {values.shape}, expected (N,)")


def _from_objects(values: RawLabels, file: str) -> RawLabels:
    """Return names as str, and integers among objects as int64."""
    cells = [_text(cell) for cell in values.tolist()]
    kinds = {type(cell) for cell in cells}
    if kinds == {str}:
        return np.array(cells, object)
    if kinds <= {int, bool}:
        return np.array(cells, np.int64)
    common = str if str in kinds else int
    row = next(i for i, cell in enumerate(cells) if not isinstance(cell, common))
    raise DataError(f"{file}: row {row} has label {cells[row]!r}, which is not a class")


def _text(cell: Any) -> Any:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell


def _find_names(
    train: Sequence[RawLabels], are_numbers: bool, source_name: object, warnings: list[str]
) -> tuple[tuple[str, ...], bool]:
    """Return class names for labels without names, and whether the labels are class indices."""
    if not are_numbers:
        return tuple(sorted({str(value) for values in train for value in values.tolist()})), False
    distinct = np.unique(np.concatenate(train))
    least, largest = int(distinct[0]), int(distinct[-1])
    if largest >= MAX_CLASSES:
        raise DataError(
            f"{source_name}: label {largest} exceeds the maximum of {MAX_CLASSES:,} classes"
        )
    # Encoding reports a negative label with its row; else all of 0 to `largest` occur, and labels
    # are indices already.
    if least < 0 or len(distinct) > largest:
        return tuple(map(str, range(largest + 1))), True
    warnings.append(
        f"{source_name}: labels are {len(distinct):,} of the numbers {least} to {largest}: each "
        f"that occurs in train is a class ({listed(distinct.tolist())})"
    )
    return tuple(map(str, distinct.tolist())), False


def _encode(
    column: Column, names: tuple[str, ...], index: dict[str, int] | None
) -> NDArray[np.int64]:
    file, values = column
    if index is None:
        return to_class_indices(values, len(names), file)
    try:
        return np.array([index[str(value)] for value in values.tolist()], np.int64)
    except KeyError:
        cells = values.tolist()
        row = next(i for i, cell in enumerate(cells) if str(cell) not in index)
        raise DataError(
            f"{file}: row {row} has label {cells[row]!r}, which is not a class ({listed(names)})"
        ) from None
