"""Draw a contact sheet: one row of sample images per class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raycnn.data.images.cache import CachedSplit
from raycnn.data.label_arrays import LabelArray, is_multi_label
from raycnn.errors import SpecError

COLUMNS, ROWS = 12, 100  # maximum number of images per class, and of classes
MIN_SIDE, MAX_SIDE = 48, 96  # bounds of the longer side of an image on the sheet, in pixels
GAP, TEXT = 4, 14
NAME_LENGTH = 24  # characters shown of a class name


def save_contact_sheet(
    path: Path, split: CachedSplit, rows: NDArray[np.int64], classes: tuple[str, ...]
) -> None:
    """Write a PNG contact sheet of images sampled evenly from `rows` (n,), class by class.

    Raises SpecError when the file cannot be written.
    """
    height, width = split.images[rows[:1]].shape[1:3]
    scale = min(max(max(height, width), MIN_SIDE), MAX_SIDE) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    labels = split.labels[rows]
    lines = min(len(classes), ROWS)
    font = ImageFont.load_default(TEXT)
    margin = round(max(font.getlength(name[:NAME_LENGTH]) for name in classes)) + 3 * GAP
    step = max(size[1], TEXT) + GAP
    sheet = Image.new("RGB", (margin + COLUMNS * (size[0] + GAP), lines * step + GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    for line, name in enumerate(classes[:ROWS]):
        top = GAP + line * step
        canvas.text((GAP, top), name[:NAME_LENGTH], "black", font)
        for column, picture in enumerate(_sample_images(split, rows[_of_class(labels, line)])):
            sheet.paste(_resize(picture, size), (margin + column * (size[0] + GAP), top))
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise SpecError(f"cannot write the sheet: {error}") from None


def _of_class(labels: LabelArray, k: int) -> NDArray[np.bool_]:
    return labels[:, k] == 1 if is_multi_label(labels) else labels == k


def _sample_images(split: CachedSplit, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    count = min(COLUMNS, len(rows))
    chosen = rows[np.arange(count) * len(rows) // max(count, 1)]
    return split.images[chosen] if count else np.empty((0, 1, 1, 1), np.uint8)


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    larger = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR)
