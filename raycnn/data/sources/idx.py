"""MNIST and Fashion-MNIST from their original IDX files, plain or gzipped.

"Gradient-Based Learning Applied to Document Recognition", LeCun et al. 1998; "Fashion-MNIST",
Xiao et al. 2017 (arXiv:1708.07747). 60,000 training and 10,000 test gray images of 28 x 28 pixels.
"""

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.data.sources.base import Source, Split, find_or_download, first_of
from raycnn.data.sources.labels import to_class_indices
from raycnn.errors import DataError
from raycnn.runtime import memory
from raycnn.shape import Shape

FILES = [
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
]  # fmt: skip
SPELLINGS = [(name, name.replace("-idx", ".idx")) for name in FILES]
EXPECTED = f"expected: {', '.join(FILES)}, plain or as .gz, also with a dot before idx"
UBYTE = 0x08
MAX_EXPANSION = 1032  # the most bytes that one byte of gzip can become
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Idx:
    """MNIST, or a data set with its files and shape."""

    shape = Shape(1, 28, 28)

    def __init__(
        self, name: str, vision: str, classes: tuple[str, ...], root: Path, download: bool
    ):
        self.name, self.vision, self.classes = name, vision, classes
        self.root, self.download = root, download

    def files(self) -> list[Path]:
        folders = [self.root / self.name, self.root / self.vision / "raw", self.root / self.vision]
        find = partial(first_of, folders, SPELLINGS)
        return find_or_download(self.name, self.root, self.download, find, self._download, EXPECTED)

    def _download(self) -> None:
        from torchvision import datasets  # slow to import, seldom needed

        getattr(datasets, self.vision)(self.root, download=True)

    def read(self) -> dict[str, Split]:
        paths = self.files()
        train, test = self._split(*paths[:2]), self._split(*paths[2:])
        return {"train": train, "test": test}

    def _split(self, images: Path, labels: Path) -> Split:
        indices = read_idx(labels)
        pixels = read_idx(images, self.shape[1:], (labels, len(indices)))
        return Split(pixels[..., None], to_class_indices(indices, len(self.classes), labels))


def read_idx(
    path: Path, item: tuple[int, ...] = (), labels: tuple[Path, int] | None = None
) -> NDArray[np.uint8]:
    """Return the array (N, *item) uint8 of an IDX file of unsigned bytes.

    The header is checked against `labels`, their file and number, and against the file's size and
    the free memory, before the data is read. Raises DataError for any other file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _read_header(file, path, 1 + len(item))
            if shape[1:] != item:
                raise DataError(f"{path} has images of {shape[1:]}, expected {item}")
            if labels and labels[1] != shape[0]:
                raise DataError(f"{path} has {shape[0]:,} images, {labels[0]} {labels[1]:,} labels")
            count = math.prod(shape)
            if count > path.stat().st_size * (MAX_EXPANSION if path.suffix == ".gz" else 1):
                raise DataError(f"{path} is too short for the shape in its header, {shape}")
            memory.require_memory(count, str(path))
            content = file.read(count)
            if len(content) != count or file.read(1):
                raise DataError(
                    f"{path} has more or fewer bytes than the shape in its header, {shape}"
                )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_header(file: Any, path: Path, dimensions: int) -> tuple[int, ...]:
    """Return the shape that the header gives. Raises DataError for another format."""
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, UBYTE, dimensions]):
        raise DataError(f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes")
    return struct.unpack(f">{dimensions}I", head[4:])


def mnist(root: Path, download: bool) -> Source:
    return Idx("mnist", "MNIST", tuple("0123456789"), root, download)


def fashion_mnist(root: Path, download: bool) -> Source:
    return Idx("fashion_mnist", "FashionMNIST", GARMENTS, root, download)
