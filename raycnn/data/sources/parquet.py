"""Images in Parquet files in Hugging Face's layout.

One column is `struct<bytes, path>`, with the bytes or the path of each image; another holds the
labels: names, or numbers whose names are in the schema's metadata. Files are local, or at any URI
that pyarrow.fs or fsspec opens (`s3://bucket/folder`).
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from raycnn.config.schema import SafePath, Uri
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
    SPLITS,
    Share,
    Source,
    Split,
    common_class_names,
    spread_rows,
    unreadable,
    with_test,
)
from raycnn.data.sources.labels import (
    Column,
    Labels,
    RawLabels,
    encode_label_sets,
    encode_labels,
    to_class_indices,
)
from raycnn.data.sources.pictures import PictureOptions, PictureSource
from raycnn.errors import DataError
from raycnn.filesystem import is_uri, open_filesystem
from raycnn.runtime import memory

FOLDERS = ("", "data/", "default/")  # folders of Hugging Face's data set repositories
SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
DEFAULT = {
    split: [
        f"{folder}{word}{form}"
        for folder in FOLDERS
        for word in words
        for form in ("-*.parquet", ".parquet", "/*.parquet")
    ]
    for split, words in SPLIT_WORDS.items()
}
LABEL_NAMES = ("label", "labels", "class", "target")
CACHE_BYTES = 2**28  # maximum size of the row groups cached for the next batch
SAMPLED_GROUPS = 4  # row groups that pictures are sampled from


SafePathOrUri = SafePath | Uri


class Table:
    """The rows of several files, concatenated. Columns that are not named are found by type."""

    def __init__(self, files: Sequence[str], image: str | None = None, label: str | None = None):
        self.files, self._image, self._label = files, image, label

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_image": self._image, "_label": self._label}

    @cached_property
    def columns(self) -> tuple[str, str]:
        """The names of the image column and of the label column."""
        schema = self._schemas[0]
        image = self._image or _only([f.name for f in schema if _holds_bytes(f.type)])
        label = self._label or _find_label(schema)
        for file, other in zip(self.files, self._schemas, strict=True):
            names = other.names
            has_both = image in names and label in names
            if not has_both or not _holds_pictures(other.field(image).type):
                hint = "" if self._image else "; set `data.image` and `data.label`"
                raise DataError(
                    f"{file} has the columns {names}, expected {image or 'the bytes of pictures'} "
                    f"and {label or 'labels'}{hint}"
                )
        assert image and label
        return image, label

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names, if the files contain them."""
        return _class_names(self._schemas[0], self.columns[1])

    @cached_property
    def values(self) -> list[Column]:
        """The labels of each file, unconverted."""
        return self._label_columns(_to_numpy)

    @cached_property
    def label_lists(self) -> list[Column]:
        """The list of labels of each image, by file."""
        return self._label_columns(_to_objects)

    def _label_columns(self, convert: Callable[[Any], RawLabels]) -> list[Column]:
        label = self.columns[1]
        read = (self._open(file, lambda opened: opened.read([label])) for file in self.files)
        pairs = zip(self.files, read, strict=True)
        return [Column(file, convert(table[label])) for file, table in pairs]

    @property
    def holds_lists(self) -> bool:
        """Whether the labels of an image are a list."""
        return _is_list(self._schemas[0].field(self.columns[1]).type)

    def labels(self, classes: int) -> NDArray[np.int64]:
        """Return the class indices (N,). Raises DataError naming file and row of a wrong label."""
        return np.concatenate(
            [to_class_indices(values, classes, file) for file, values in self.values]
        )

    def __len__(self) -> int:
        return self._starts[-1]

    def pictures(self, rows: Rows) -> list[NamedImage]:
        pictures = []
        for row in rows.tolist():
            group = bisect_right(self._starts, row) - 1
            file, _, before = self._groups[group]
            cell = self._cells(group)[row - self._starts[group]].as_py()
            name = f"{self.files[file]}: row {row - self._starts[group] + before}"
            pictures.append(self._named(name, self.files[file], cell))
        return pictures

    def sample(self) -> Iterator[NamedImage]:
        """Yield a sample of the images, from row groups spread over the files."""
        for group in spread_rows(len(self._groups), SAMPLED_GROUPS).tolist():
            first, end = self._starts[group], self._starts[group + 1]
            yield from self.pictures(np.arange(first, min(end, first + SAMPLE // SAMPLED_GROUPS)))

    def referenced(self) -> list[str]:
        """Return the image files of which the Parquet files hold only the paths."""
        image, referenced = self.columns[0], list[str]()
        by_path = not _holds_bytes(self._schemas[0].field(image).type)
        column = image if by_path else f"{image}.path"
        for (file, number, _), nulls in zip(self._groups, self._nulls, strict=True):
            if by_path or nulls == self._footers[file].row_group(number).num_rows:
                read = partial(_read_column, number=number, column=column)
                cells = self._open(self.files[file], read).to_pylist()
                named = (self._named("", self.files[file], cell)[1] for cell in cells)
                referenced += [path for path in named if isinstance(path, str)]
        return referenced

    @cached_property
    def _nulls(self) -> list[int | None]:
        """The number of images without bytes in each row group; None without statistics."""
        image = self.columns[0]
        return [
            _null_count(self._footers[file].row_group(number), f"{image}.bytes")
            for file, number, _ in self._groups
        ]

    def _named(self, name: str, file: str, cell: Any) -> NamedImage:
        """Return an image's bytes, else its path, relative to the Parquet file's folder."""
        content, path = cell, None
        if isinstance(cell, dict):
            content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, str):
            content, path = None, content
        if content or not path or is_uri(path) or is_uri(file):
            return name, content
        full_path = path if os.path.isabs(path) else os.path.join(os.path.dirname(file), path)
        return f"{name} ({full_path})", full_path

    @cached_property
    def _footers(self) -> list[Any]:
        return [self._open(file, lambda opened: opened.metadata) for file in self.files]

    @cached_property
    def _schemas(self) -> list[Any]:
        return [footer.schema.to_arrow_schema() for footer in self._footers]

    @cached_property
    def _groups(self) -> list[tuple[int, int, int]]:
        """The file of each row group, its number in it, and the number of rows before it."""
        groups = []
        for file, footer in enumerate(self._footers):
            before = 0
            for number in range(footer.num_row_groups):
                groups.append((file, number, before))
                before += footer.row_group(number).num_rows
        return groups

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group, and the total number of rows."""
        sizes = (self._footers[file].row_group(number).num_rows for file, number, _ in self._groups)
        return list(accumulate(sizes, initial=0))

    @cached_property
    def _cells(self) -> Callable[[int], Any]:
        """A cached reader of row groups, the smallest unit that Parquet reads."""
        sizes = (self._footers[f].row_group(n).total_byte_size for f, n, _ in self._groups)
        return lru_cache(max(1, CACHE_BYTES // max(sizes, default=1)))(self._read_group)

    def _read_group(self, group: int) -> Any:
        """Return the cells of a row group: bytes, paths, or structs of both."""
        file, number, _ = self._groups[group]
        image = self.columns[0]
        size = self._footers[file].row_group(number).total_byte_size
        memory.require_memory(size, f"{self.files[file]}: row group {number}")
        table = self._open(self.files[file], lambda opened: opened.read_row_group(number, [image]))
        cells = table[image]
        if pa.types.is_struct(cells.type) and self._nulls[group] == 0:
            return pc.struct_field(cells, "bytes")
        return cells

    def _open(self, file: str, use: Callable[[Any], Any]) -> Any:
        try:
            system, path = open_filesystem(file)
            with system.open_input_file(path) as source:
                return use(pq.ParquetFile(source))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {file}: {error}") from None


def _null_count(group: Any, path: str) -> int | None:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == path:
            stats = column.statistics
            return stats.null_count if stats is not None and stats.has_null_count else None
    return None


def _read_column(opened: Any, number: int, column: str) -> Any:
    """Return a leaf column of a row group, which may be inside a struct."""
    cells = opened.read_row_group(number, [column]).column(0)
    return pc.struct_field(cells, column.rpartition(".")[2]) if "." in column else cells


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _find_label(schema: Any) -> str | None:
    """Return the label column: by its name, by its class names, or as the only candidate."""
    for name in LABEL_NAMES:
        if name in schema.names:
            return name
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    with_names = [name for name in numbers if _class_names(schema, name)]
    categories = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    lists = [field.name for field in schema if _is_list(field.type)]
    return _only(with_names) or _only(numbers) or _only(categories) or _only(lists)


def _is_list(kind: Any) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _holds_pictures(kind: Any) -> bool:
    return _holds_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        feature = features[label]
        if isinstance(feature, list):  # the column holds lists
            (feature,) = feature
        return tuple(map(str, feature.get("feature", feature)["names"]))
    except (TypeError, AttributeError, KeyError, ValueError):
        return None  # the file has no such metadata, or metadata of another kind


def _to_numpy(column: Any) -> RawLabels:
    """Return labels (N,), or (N, K) for lists of equal length."""
    kind = column.type
    if _is_list(kind):
        rows = column.to_pylist()
        if len({len(row) if row is not None else -1 for row in rows}) == 1:
            return np.array(rows)
    if pa.types.is_integer(kind) and not column.null_count:
        return column.to_numpy()
    if (pa.types.is_floating(kind) or pa.types.is_boolean(kind)) and not column.null_count:
        return column.to_numpy()
    return _to_objects(column)


def _to_objects(column: Any) -> RawLabels:
    values = np.empty(len(column), object)
    for row, value in enumerate(column.to_pylist()):
        values[row] = value
    return values


class Parquet(PictureSource):
    """Images and labels in Parquet files of one or several splits."""

    def __init__(
        self,
        folder: str,
        globs: dict[str, str | None],
        columns: tuple[str | None, str | None],
        multi_label: bool,
        share: float,
        pictures: PictureOptions,
    ):
        super().__init__(pictures)
        self.folder, self.globs, self.columns, self.share = folder, globs, columns, share
        self.multi_label = multi_label

    @cached_property
    def tables(self) -> dict[str, Table]:
        splits = {name: self._matching(name) for name in SPLITS}
        return {name: Table(files, *self.columns) for name, files in splits.items() if files}

    @cached_property
    def labels(self) -> Labels:
        by_split = {
            name: table.class_names for name, table in self.tables.items() if table.class_names
        }
        names = common_class_names(by_split, self.folder) if by_split else None
        if self.multi_label:
            columns = {name: table.label_lists for name, table in self.tables.items()}
            return encode_label_sets(columns, names, self.folder)
        columns = {name: table.values for name, table in self.tables.items()}
        try:
            return encode_labels(columns, names, self.folder)
        except DataError as error:
            has_lists = any(table.holds_lists for table in self.tables.values())
            hint = "; set `data.multi_label: true` for lists of any length" if has_lists else ""
            raise DataError(f"{error}{hint}") from None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def _sample(self) -> Iterator[NamedImage]:
        return self.tables["train"].sample()

    def files(self) -> list[str]:
        tables = self.tables.values()
        return [file for table in tables for file in (*table.files, *table.referenced())]

    def read(self) -> dict[str, Split]:
        splits = {
            name: Split(Pictures(len(table), table.pictures, self.image_format), labels)
            for name, labels in self.labels.splits.items()
            for table in [self.tables[name]]
        }
        splits["train"] = replace(splits["train"], warnings=self.labels.warnings)
        return with_test(splits, self.share)

    def _matching(self, split: str) -> list[str]:
        """Return the files of a split. Raises DataError when a given glob, or train's, has none."""
        glob = self.globs[split]
        for pattern in [glob] if glob else DEFAULT[split]:
            if files := self._list(pattern):
                return files
        if not glob and split != "train":
            return []
        raise DataError(
            f"{self.folder} has no {glob or DEFAULT[split][0]}; set `data.path` to the folder, "
            f"`data.{split}_files` to the files in it"
        )

    def _list(self, pattern: str) -> list[str]:
        top, mark, query = (
            self.folder.partition("?") if is_uri(self.folder) else (self.folder, "", "")
        )
        parent, _, name = pattern.rpartition("/")
        folder = "/".join(filter(None, [top.rstrip("/"), parent]))
        try:
            system, path = open_filesystem(folder + mark + query)
            infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error) from None
        names = sorted(info.base_name for info in infos if info.is_file)
        return [f"{folder}/{n}{mark}{query}" for n in names if fnmatchcase(n, name)]


def parquet(
    root: Path,
    download: bool,
    *,
    path: SafePathOrUri | None = None,
    train_files: SafePath | None = None,
    val_files: SafePath | None = None,
    test_files: SafePath | None = None,
    image: str | None = None,
    label: str | None = None,
    multi_label: bool = False,
    test: Share = 0.2,
    size: TargetSize | None = None,
    fit: Fit = FIT,
    mode: Mode | None = None,
    max_value: MaxValue | None = None,
) -> Source:
    """Build a source of Parquet files.

    `*_files` are globs below `path`, by default `train-*.parquet` and the like. `test` is the share
    held out of train, by class, if there are no test files. With `multi_label` the labels of an
    image are a list of any length.
    """
    folder = path if path and is_uri(path) else os.path.join(root, path or "")
    globs = {"train": train_files, "val": val_files, "test": test_files}
    pictures = PictureOptions(size, fit, mode, max_value)
    return Parquet(folder, globs, (image, label), multi_label, test, pictures)
