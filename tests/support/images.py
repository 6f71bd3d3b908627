"""Data that tests make for themselves, and look at whole."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raycnn.config.components import DATASETS
from raycnn.config.schema import ComponentConfig, JobSpec
from raycnn.data.sources.base import Source, Split
from raycnn.errors import DataError

MakeJob = Callable[..., JobSpec]


def source(name: str, root: Path, **options: Any) -> Source:
    return DATASETS.build(ComponentConfig(name=name, **options), root, False)


def pixels(split: Split) -> np.ndarray:
    """All images of a split."""
    return split.images[np.arange(len(split.labels))]


def refusal(name: str, root: Path, **options: Any) -> str:
    """What is said when everything is read."""
    with pytest.raises(DataError) as caught:
        made = source(name, root, **options)
        assert made.files() and made.shape and made.classes
        for split in made.read().values():
            pixels(split)
    assert caught.value.exit_code == 4
    return str(caught.value)


def png(size: tuple[int, int] = (32, 32), color: int = 0, mode: str = "RGB") -> bytes:
    """(width, height)"""
    buffer = io.BytesIO()
    image = Image.new("RGB", size, (color, 0, 0)).convert(mode)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(
    top: Path, classes: list[str], count: int, size: tuple[int, int] = (6, 4)
) -> Path:
    """Pictures of random pixels, no two alike, in a folder per class; `size` is (width, height)."""
    for number, name in enumerate(classes):
        (top / name).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([number, *map(ord, str(top))])
        for i in range(count):
            image = noise.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(image).save(top / name / f"{i}.png")
    return top


def write_parquet(path: Path, images: list[bytes | None], labels: list[Any], **more: Any) -> Path:
    """`image` and `label` rename the columns, `names` are the classes in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, label = more.get("image", "image"), more.get("label", "label")
    cells = [None if cell is None else {"bytes": cell, "path": None} for cell in images]
    table = pa.table({image: cells, label: labels})
    if names := more.get("names"):
        told = json.dumps({"info": {"features": {label: {"names": names}}}})
        table = table.replace_schema_metadata({"huggingface": told})
    pq.write_table(table, path, row_group_size=more.get("group", 4))
    return path
