"""Pictures in Parquet files as Hugging Face lays them out: a column of `struct<bytes, path>` with
the files' bytes, and a column of class numbers, whose names stand in the schema's metadata.

Local files, or any URI that pyarrow.fs opens (`s3://bucket/folder`).
"""

import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs
from pydantic import AfterValidator

from raycnn.config.schema import SafePath
from raycnn.data.images.decode import (
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
from raycnn.data.sources.base import (
    Share,
    Source,
    Split,
    check_labels,
    common_class_names,
    hold_out,
    numbered_class_names,
)
from raycnn.errors import DataError
from raycnn.shape import Shape

DEFAULT = {
    "train": ["train-*.parquet"],
    "val": ["val-*.parquet", "valid-*.parquet", "validation-*.parquet"],
    "test": ["test-*.parquet"],
}
KEPT_BYTES = 2**28  # of the pictures of row groups that are kept for the next batch


def _uri(place: str) -> str:
    if not re.match(r"[a-z][a-z0-9+.-]*://", place) or ".." in place.split("/"):
        raise ValueError("is neither a plain path nor a URI (s3://bucket/folder)")
    return place


Place = SafePath | Annotated[str, AfterValidator(_uri)]


class Table:
    """The rows of some files, file after file. Columns not named are found by their type."""

    def __init__(self, files: Sequence[str], image: str | None = None, label: str | None = None):
        self.files, self._image, self._label = files, image, label

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_image": self._image, "_label": self._label}

    @cached_property
    def columns(self) -> tuple[str, str]:
        """The names of the column of pictures and of the column of class numbers."""
        schema = self._schemas[0]
        pictures = [field.name for field in schema if _holds_bytes(field.type)]
        numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
        named = [name for name in numbers if _class_names(schema, name)]
        image = self._image or (pictures[0] if len(pictures) == 1 else None)
        label = self._label or next((n for n in schema.names if n == "label"), None)
        label = label or next((names[0] for names in (named, numbers) if len(names) == 1), None)
        for file, schema in zip(self.files, self._schemas, strict=True):
            names = schema.names
            there = image in names and label in names
            if not there or not _holds_bytes(schema.field(image).type):
                hint = ": `data.image` and `data.label` name them"
                raise DataError(
                    f"{file}: columns {names}, where {image or 'the bytes of pictures'} and "
                    f"{label or 'class numbers'} are due{'' if self._image else hint}"
                )
        assert image and label
        return image, label

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """Of the classes, where the files tell them."""
        return _class_names(self._schemas[0], self.columns[1])

    @cached_property
    def numbers(self) -> list[NDArray[Any]]:
        """The class numbers as each file has them."""
        label = self.columns[1]
        read = (self._open(file, lambda opened: opened.read([label])) for file in self.files)
        return [_plain(table[label]) for table in read]

    def labels(self, classes: int) -> NDArray[np.int64]:
        """Of all rows. Raises DataError naming the file and its row."""
        both = zip(self.numbers, self.files, strict=True)
        return np.concatenate([check_labels(numbers, classes, file) for numbers, file in both])

    def __len__(self) -> int:
        return self._starts[-1]

    def pictures(self, rows: Rows) -> list[Named]:
        found = []
        for row in rows.tolist():
            group = bisect_right(self._starts, row) - 1
            file, _, before = self._groups[group]
            cell = self._cells(group)[row - self._starts[group]].as_py()
            found.append((f"{self.files[file]}: row {row - self._starts[group] + before}", cell))
        return found

    def each(self) -> Iterator[Named]:
        return (self.pictures(np.array([row]))[0] for row in range(len(self)))

    @cached_property
    def _footers(self) -> list[Any]:
        return [self._open(file, lambda opened: opened.metadata) for file in self.files]

    @cached_property
    def _schemas(self) -> list[Any]:
        return [footer.schema.to_arrow_schema() for footer in self._footers]

    @cached_property
    def _groups(self) -> list[tuple[int, int, int]]:
        """Of each row group its file, its number there, and how many rows precede it there."""
        groups = []
        for file, footer in enumerate(self._footers):
            before = 0
            for number in range(footer.num_row_groups):
                groups.append((file, number, before))
                before += footer.row_group(number).num_rows
        return groups

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group, and of what would follow the last."""
        sizes = (self._footers[file].row_group(number).num_rows for file, number, _ in self._groups)
        return list(accumulate(sizes, initial=0))

    @cached_property
    def _cells(self) -> Callable[[int], Any]:
        """The bytes of a row group's pictures: Parquet gives a group whole or not at all."""
        sizes = (self._footers[f].row_group(n).total_byte_size for f, n, _ in self._groups)
        return lru_cache(max(1, KEPT_BYTES // max(sizes, default=1)))(self._read_group)

    def _read_group(self, group: int) -> Any:
        file, number, _ = self._groups[group]
        image = self.columns[0]
        table = self._open(self.files[file], lambda opened: opened.read_row_group(number, [image]))
        cells = table[image]
        return pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells

    def _open(self, file: str, use: Callable[[Any], Any]) -> Any:
        try:
            system, path = system_of(file)
            with system.open_input_file(path) as source:
                return use(pq.ParquetFile(source))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {file}: {error}") from None


def system_of(place: str) -> tuple[Any, str]:
    """The file system of a path or a URI, and the path there."""
    return fs.FileSystem.from_uri(place) if "://" in place else (fs.LocalFileSystem(), place)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (TypeError, KeyError, ValueError):  # no such metadata, or metadata of another kind
        return None


def _plain(column: Any) -> NDArray[Any]:
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.to_numpy()
    return np.array(column.to_pylist(), object)


class Parquet:
    def __init__(
        self,
        place: str,
        globs: dict[str, str | None],
        columns: tuple[str | None, str | None],
        share: float,
        size: Size | None,
        fit: Fit,
        mode: Mode | None,
    ):
        self.place, self.globs, self.columns, self.share = place, globs, columns, share
        self.size, self.fit, self.mode = size, fit, mode

    @cached_property
    def tables(self) -> dict[str, Table]:
        found = {name: self._matching(name) for name in ("train", "val", "test")}
        return {name: Table(files, *self.columns) for name, files in found.items() if files}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        lists = {name: table.names for name, table in self.tables.items()}
        told = {name: names for name, names in lists.items() if names}
        if told:
            return common_class_names(told, self.place)
        return numbered_class_names(self.tables["train"].numbers, self.place)

    @cached_property
    def frame(self) -> ImageFormat:
        return image_format_of(self.size, self.fit, self.mode, self.tables["train"].each())

    @property
    def shape(self) -> Shape:
        return self.frame.shape

    def files(self) -> list[str]:
        return [file for table in self.tables.values() for file in table.files]

    def read(self) -> dict[str, Split]:
        count = len(self.classes)
        splits = {
            name: Split(Pictures(len(table), table.pictures, self.frame), table.labels(count))
            for name, table in self.tables.items()
        }
        return splits if "test" in splits else splits | hold_out(splits["train"], self.share)

    def _matching(self, split: str) -> list[str]:
        """Raises DataError when a glob that was given, or that of train, finds nothing."""
        glob = self.globs[split]
        for pattern in [glob] if glob else DEFAULT[split]:
            if files := self._list(pattern):
                return files
        if not glob and split != "train":
            return []
        raise DataError(
            f"{self.place} has no {glob or DEFAULT[split][0]}: `data.path` names the folder, "
            f"`data.{split}_files` the files in it"
        )

    def _list(self, pattern: str) -> list[str]:
        place, mark, query = (
            self.place.partition("?") if "://" in self.place else (self.place, "", "")
        )
        parent, _, name = pattern.rpartition("/")
        folder = "/".join(filter(None, [place.rstrip("/"), parent]))
        try:
            system, path = system_of(folder + mark + query)
            there = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read the data: {error}") from None
        names = sorted(info.base_name for info in there if info.is_file)
        return [f"{folder}/{n}{mark}{query}" for n in names if fnmatchcase(n, name)]


def parquet(
    root: Path,
    download: bool,
    *,
    path: Place | None = None,
    train_files: SafePath | None = None,
    val_files: SafePath | None = None,
    test_files: SafePath | None = None,
    image: str | None = None,
    label: str | None = None,
    test: Share = 0.2,
    size: Size | None = None,
    fit: Fit = FIT,
    mode: Mode | None = None,
) -> Source:
    """`*_files` are globs below `path`; when absent train-*.parquet and the like. `test` is the
    share held out of train, by class, where there are no test files.
    """
    place = path if path and "://" in path else os.path.join(root, path or "")
    globs = {"train": train_files, "val": val_files, "test": test_files}
    return Parquet(place, globs, (image, label), test, size, fit, mode)
