"""Pictures of any number of classes: each class is a bright square at a place of its own."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("blue", "green", "red")
PLACES = {"red": (0, 0, 0), "green": (0, 6, 1), "blue": (6, 3, 2)}  # top, left, channel
SIDE = 12


def drawn(count: int, seed: int = 0) -> tuple[list[Image.Image], list[list[str]]]:
    """Pictures and the classes of each: some have none, some all of them."""
    noise = np.random.default_rng(seed)
    pictures, labels = [], []
    for _ in range(count):
        pixels = noise.integers(0, 120, (SIDE, SIDE, 3), np.uint8)
        own = [name for name in CLASSES if noise.random() < 0.45]
        for name in own:
            top, left, channel = PLACES[name]
            pixels[top : top + 6, left : left + 6, channel] += 100
        pictures.append(Image.fromarray(pixels))
        labels.append(own)
    return pictures, labels


def write_csv(root: Path, count: int = 120, separator: str = "|") -> list[list[str]]:
    """A folder of pictures with train.csv; returns the classes of each picture."""
    (root / "pictures").mkdir(parents=True)
    pictures, labels = drawn(count)
    lines = ["image,labels"]
    for number, (picture, own) in enumerate(zip(pictures, labels, strict=True)):
        picture.save(root / "pictures" / f"{number:03}.png")
        lines.append(f"{number:03}.png,{separator.join(own)}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return labels


def write_lists(root: Path, count: int = 60) -> list[list[str]]:
    """The pictures in a Parquet file with a column of lists."""
    pictures, labels = drawn(count)
    cells = [{"bytes": _png(picture), "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": cells, "labels": labels}), root / "train-0.parquet")
    return labels


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
