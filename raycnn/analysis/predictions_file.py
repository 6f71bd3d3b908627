"""Read and write the stored predictions of a run: one row per image of val and test.

They are the predictions that training/predictions.py collects, with the names of the images.

predictions.parquet
    split           train, val or test
    sample          row in the source's split; held-out validation images have their row in train
    file            path relative to the data folder, if each image is a file
    label           index into the class names in the schema's metadata; multi-label, a list of them
    predicted       the class with the largest logit; multi-label, those of at least 0.5
    probabilities   one per class, or the 20 largest if a split has more than 2^26
    classes         the classes of these 20, in that case only

The metadata also has the epoch, counted from 1, of the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycnn.data.label_arrays import LabelArray, is_multi_label
from raycnn.data.splits import Splits
from raycnn.errors import DataError
from raycnn.io import atomic_path
from raycnn.training.predictions import TOP, SplitPredictions

FILE = "predictions.parquet"
METADATA = b"raycnn"
ROW_GROUP = 2**22  # probabilities, at least one image


@dataclass(frozen=True)
class Predictions:
    """The content of predictions.parquet."""

    classes: tuple[str, ...]
    epoch: int
    """The epoch of the weights, from 1."""
    splits: dict[str, SplitPredictions]
    files: dict[str, NDArray[np.object_] | None]
    """(N,) file names of each split; None if images are not files."""

    def name(self, split: str, index: int) -> str:
        """Return the file of an image, else its row."""
        files = self.files[split]
        row = int(self.splits[split].samples[index])
        return f"row {row}" if files is None else str(files[index])


def from_training(
    splits: Splits, epoch: int, predicted: Mapping[str, SplitPredictions]
) -> Predictions:
    """Return the predictions of a training, with the names of the image files."""
    files = {split: file_names(splits, split, p.samples) for split, p in predicted.items()}
    return Predictions(splits.classes, epoch, dict(predicted), files)


def file_names(
    splits: Splits, split: str, samples: NDArray[np.int64]
) -> NDArray[np.object_] | None:
    """Return the file names of rows (N,) of a split; None if images are not files.

    Where images were left out, since they cannot be read, the others are named by their rows.
    """
    source_split = splits.cache.splits[splits.members[split][0]]
    is_complete = len(source_split.rows) == source_split.rows[-1] + 1
    if source_split.names is None and is_complete:
        return None
    return np.array([source_split.name(int(row)) for row in samples], object)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file atomically. Raises OSError."""
    splits = _same_width(predictions.splits)
    metadata = {"classes": predictions.classes, "epoch": predictions.epoch}
    schema = _schema(splits).with_metadata({METADATA: json.dumps(metadata).encode()})
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as f,
    ):
        for split, content in splits.items():
            step = max(1, ROW_GROUP // content.probabilities.shape[1])
            for start in range(0, len(content), step):
                rows = slice(start, start + step)
                f.write_table(_table(split, content, predictions.files[split], rows, schema))


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions. Raises DataError when it is missing or corrupt."""
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            table = file.read()
        metadata = json.loads(table.schema.metadata[METADATA])
        splits, files = {}, {}
        for split in table["split"].unique().to_pylist():
            part = table.filter(pc.equal(table["split"], split))
            names = [name for name in part.column_names if name != "split"]
            columns = {name: _array(part[name], len(metadata["classes"])) for name in names}
            classes = columns.get("classes")
            splits[split] = SplitPredictions(
                columns["sample"], columns["label"], columns["predicted"],
                columns["probabilities"], classes,
            )  # fmt: skip
            files[split] = None if part["file"].null_count else columns["file"]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; write it with `raycnn eval RUN`") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    return Predictions(tuple(metadata["classes"]), metadata["epoch"], splits, files)


def _same_width(splits: Mapping[str, SplitPredictions]) -> dict[str, SplitPredictions]:
    """Return the splits, all reduced to the largest probabilities if one of them is."""
    if all(predictions.classes is None for predictions in splits.values()):
        return dict(splits)
    return {split: largest(predictions) for split, predictions in splits.items()}


def largest(predictions: SplitPredictions, top: int = TOP) -> SplitPredictions:
    """Return predictions with only the `top` probabilities of each image, the largest first."""
    if predictions.classes is not None:
        return predictions
    order = np.argsort(-predictions.probabilities, 1, kind="stable")[:, :top]
    probabilities = np.take_along_axis(predictions.probabilities, order, 1)
    return replace(predictions, probabilities=probabilities, classes=order)


def _schema(splits: Mapping[str, SplitPredictions]) -> pa.Schema:
    first = next(iter(splits.values()))
    width = first.probabilities.shape[1]
    label = pa.list_(pa.int64()) if first.multi_label else pa.int64()
    fields = [
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("sample", pa.int64()),
        ("file", pa.string()),
        ("label", label),
        ("predicted", label),
        ("probabilities", pa.list_(pa.float32(), width)),
    ]
    if first.classes is not None:
        fields.append(("classes", pa.list_(pa.int64(), width)))
    return pa.schema(fields)


def _table(
    split: str,
    predictions: SplitPredictions,
    files: NDArray[np.object_] | None,
    rows: slice,
    schema: pa.Schema,
) -> pa.Table:
    count, width = predictions.probabilities[rows].shape

    def lists(values: NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values[rows].ravel()), width)

    columns = [
        pa.array([split] * count).dictionary_encode().cast(schema.field("split").type),
        pa.array(predictions.samples[rows]),
        pa.nulls(count, pa.string()) if files is None else pa.array(files[rows], pa.string()),
        _label_column(predictions.labels[rows]),
        _label_column(predictions.predicted[rows]),
        lists(predictions.probabilities),
    ]
    if predictions.classes is not None:
        columns.append(lists(predictions.classes))
    return pa.Table.from_arrays(columns, schema=schema)


def _label_column(labels: LabelArray) -> pa.Array:
    """Return a column of class indices, or of lists of them."""
    if not is_multi_label(labels):
        return pa.array(labels)
    offsets = np.concatenate([[0], np.cumsum(labels.sum(1, dtype=np.int32))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.nonzero(labels)[1]))


def _array(column: pa.ChunkedArray, classes: int) -> NDArray[Any]:
    if pa.types.is_list(column.type):
        marks = np.zeros((len(column), classes), np.uint8)
        counts = pc.list_value_length(column).to_numpy()
        marks[np.repeat(np.arange(len(column)), counts), pc.list_flatten(column).to_numpy()] = 1
        return marks
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(len(column), column.type.list_size)
