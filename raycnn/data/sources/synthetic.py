"""Synthetic images: stripes whose direction, width and two colors depend on the class.

Each image has a random offset and noise. All of it is integer arithmetic on the seed, so the images
are the same on every machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from raycnn.config.schema import Fraction
from raycnn.data.images.decode import TargetSize
from raycnn.data.sources.base import Source, Split
from raycnn.runtime import rng
from raycnn.shape import Shape

STRIPES, COLORS, IMAGES = 0, 1, 2  # separate random streams
STEEPEST, NARROWEST, WIDEST = 4, 6, 14  # in pixels


@dataclass(frozen=True)
class Stripes:
    """The images of one split, generated on access; image i is of class i modulo `classes`."""

    count: int
    classes: int
    shape: Shape
    noise: float
    seed: int
    split: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images (B, H, W, C) uint8 of rows (B,)."""
        label = (rows % self.classes)[:, None]
        down, right, width, lean = self._random(STRIPES, label, np.arange(4)).T[..., None, None]
        offset = self._random(IMAGES, self.split, rows)[:, None, None]
        y, x = np.arange(self.shape.height)[:, None], np.arange(self.shape.width)
        along = y * (1 + down % STEEPEST) + x * (right % (STEEPEST + 1)) * (1 - 2 * (lean % 2))
        width = NARROWEST + width % (WIDEST - NARROWEST + 1)
        first = (along + offset % (2 * width)) % (2 * width) < width

        tones = self._random(COLORS, label, np.arange(2 * self.shape.channels)) % 256
        light, dark = tones.reshape(-1, 2, 1, 1, self.shape.channels).swapaxes(0, 1)
        clean = np.where(first[..., None], light, dark)
        share = round(self.noise * 256)
        return ((clean * (256 - share) + self._noise(rows) * share) >> 8).astype(np.uint8)

    def _random(self, *keys: int | NDArray[np.int64]) -> NDArray[np.int64]:
        return (rng.random_bits(self.seed, *keys) >> np.uint64(32)).astype(np.int64)

    def _noise(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return noise (B, H, W, C), 0 to 255."""
        channels, height, width = self.shape
        size = height * width * channels
        keys = (rng.number(self.seed, IMAGES, self.split, row, 1) for row in rows.tolist())
        words = (np.random.Philox(key=key).random_raw(-(-size // 8)) for key in keys)
        noise = [word.astype("<u8").view(np.uint8)[:size].astype(np.uint16) for word in words]
        return np.array(noise, np.uint16).reshape(-1, height, width, channels)


@dataclass(frozen=True)
class Synthetic:
    """A source of generated images."""

    shape: Shape
    classes: tuple[str, ...]
    counts: dict[str, int]
    noise: float
    seed: int

    def files(self) -> list[Path]:
        return []

    def read(self) -> dict[str, Split]:
        return {name: self._split(name, number) for number, name in enumerate(self.counts)}

    def _split(self, name: str, number: int) -> Split:
        count, classes = self.counts[name], len(self.classes)
        images = Stripes(count, classes, self.shape, self.noise, self.seed, number)
        return Split(images, np.arange(count) % classes)


def synthetic(
    root: Path,
    download: bool,
    *,
    classes: Annotated[int, Field(ge=2, le=100_000)] = 10,
    size: TargetSize = 32,
    channels: Literal[1, 3, 4] = 3,
    train: PositiveInt = 1000,
    test: PositiveInt = 200,
    noise: Fraction = 0.5,
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
) -> Source:
    height, width = [size, size] if isinstance(size, int) else size
    names = tuple(map(str, range(classes)))
    shape = Shape(channels, height, width)
    return Synthetic(shape, names, {"train": train, "test": test}, noise, seed)
