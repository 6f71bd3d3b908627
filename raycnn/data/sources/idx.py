"""MNIST and Fashion-MNIST in their own IDX files, plain or gzipped.

"Gradient-Based Learning Applied to Document Recognition", LeCun et al. 1998; "Fashion-MNIST",
Xiao et al. 2017 (arXiv:1708.07747). 60,000 + 10,000 grey images of 28 x 28.
"""

import gzip
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycnn.data.sources.base import Source, Split, check_labels, find_or_download, first_of
from raycnn.errors import DataError
from raycnn.shape import Shape

FILES = [
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
]  # fmt: skip
UBYTE = 0x08
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Idx:
    shape = Shape(1, 28, 28)

    def __init__(
        self, name: str, vision: str, classes: tuple[str, ...], root: Path, download: bool
    ):
        self.name, self.vision, self.classes = name, vision, classes
        self.root, self.download = root, download

    def files(self) -> list[Path]:
        folders = [self.root / self.name, self.root / self.vision / "raw", self.root / self.vision]
        find = partial(first_of, folders, FILES)
        return find_or_download(self.name, self.root, self.download, find, self._download)

    def _download(self) -> None:
        from torchvision import datasets  # slow to import, seldom needed

        getattr(datasets, self.vision)(self.root, download=True)

    def read(self) -> dict[str, Split]:
        paths = self.files()
        train, test = self._split(*paths[:2]), self._split(*paths[2:])
        return {"train": train, "test": test}

    def _split(self, images: Path, labels: Path) -> Split:
        pixels, names = read_idx(images, 3), read_idx(labels, 1)
        if pixels.shape[1:] != self.shape[1:]:
            raise DataError(
                f"{images}: images of {pixels.shape[1:]}, where {self.shape[1:]} are due"
            )
        if len(pixels) != len(names):
            raise DataError(f"{images} has {len(pixels):,} images, {labels} {len(names):,} labels")
        return Split(pixels[..., None], check_labels(names, len(self.classes), labels))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes. Raises DataError for anything else."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, UBYTE, dimensions]):
        raise DataError(f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape)):
        raise DataError(f"{path}: {len(raw) - start:,} bytes, where its header says {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def mnist(root: Path, download: bool) -> Source:
    return Idx("mnist", "MNIST", tuple("0123456789"), root, download)


def fashion_mnist(root: Path, download: bool) -> Source:
    return Idx("fashion_mnist", "FashionMNIST", GARMENTS, root, download)
