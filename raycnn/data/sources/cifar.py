"""CIFAR: "Learning Multiple Layers of Features from Tiny Images", Krizhevsky 2009.

50,000 training and 10,000 test color images of 32 x 32 pixels, in 10 classes or 100 (the fine
ones), from Hugging Face's Parquet files or from the original pickled batches.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.decode import ImageFormat, Pictures
from raycnn.data.sources.base import Source, Split, find_or_download, first_of
from raycnn.data.sources.labels import to_class_indices
from raycnn.data.sources.parquet import Table
from raycnn.errors import DataError
from raycnn.shape import Shape

ALLOWED_GLOBALS = {  # what a pickled batch needs
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


@dataclass(frozen=True)
class CifarVariant:
    """The file, column and class names of CIFAR-10 or CIFAR-100."""

    name: str
    vision: str
    """The name of torchvision's data set class."""
    folder: str
    batches: tuple[str, ...]
    label: str
    """The label column in Parquet; its plural is the key in the batches."""
    classes: tuple[str, ...]


CIFAR10 = CifarVariant(
    "cifar10", "CIFAR10", "cifar-10-batches-py",
    (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), "label",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)  # fmt: skip
CIFAR100 = CifarVariant(
    "cifar100", "CIFAR100", "cifar-100-python", ("train", "test"), "fine_label",
    tuple("""
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
        couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
        house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
        rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
        sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
        turtle wardrobe whale willow_tree wolf woman worm
    """.split()),
)  # fmt: skip


class Cifar:
    """CIFAR-10 or CIFAR-100 from local files."""

    shape = Shape(3, 32, 32)

    def __init__(self, variant: CifarVariant, root: Path, download: bool):
        self.variant, self.root, self.download = variant, root, download
        self.classes = variant.classes

    def files(self) -> list[Path]:
        return find_or_download(
            self.variant.name,
            self.root,
            self.download,
            self._find,
            self._download,
            self._expected(),
        )

    def _expected(self) -> str:
        """Return the expected file names as text for a message."""
        return f"expected: {self.variant.folder}/, or train-*.parquet and test-*.parquet"

    def _find(self) -> list[Path] | None:
        """Return the Parquet files train-* and test-*, else the batches, in reading order."""
        name = self.variant.name
        inner = self.root / name
        for folder in (inner, inner / "plain_text", inner / name, self.root):
            train, test = (sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test"))
            if train and test:
                return train + test
        batches = [(name,) for name in self.variant.batches]
        return first_of([top / self.variant.folder for top in (self.root, inner)], batches)

    def _download(self) -> None:
        from torchvision import datasets  # slow to import, seldom needed

        getattr(datasets, self.variant.vision)(str(self.root), download=True)

    def read(self) -> dict[str, Split]:
        parts: dict[str, list[Path]] = {"train": [], "test": []}
        for path in self.files():
            parts["test" if path.name.startswith("test") else "train"].append(path)
        return {name: self._split(paths) for name, paths in parts.items()}

    def _split(self, paths: list[Path]) -> Split:
        if paths[0].suffix == ".parquet":
            table = Table([str(path) for path in paths], "img", self.variant.label)
            images = Pictures(len(table), table.pictures, ImageFormat(self.shape, None))
            return Split(images, table.labels(len(self.classes)))
        pixels, labels = zip(*map(self._batch, paths), strict=True)
        return Split(np.concatenate(pixels), np.concatenate(labels))

    def _batch(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        try:
            batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images = np.asarray(batch[b"data"], np.uint8).reshape(-1, *self.shape)
            labels = np.asarray(batch[f"{self.variant.label}s".encode()])
        except (
            OSError,
            EOFError,
            pickle.UnpicklingError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(f"{path} is not a batch of {self.variant.vision}: {error}") from None
        if len(images) != len(labels):
            raise DataError(f"{path} has {len(images):,} images and {len(labels):,} labels")
        return images.transpose(0, 2, 3, 1), to_class_indices(labels, len(self.classes), path)


class _Unpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values only; no other callable can be loaded."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it loads {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def cifar10(root: Path, download: bool) -> Source:
    return Cifar(CIFAR10, root, download)


def cifar100(root: Path, download: bool) -> Source:
    return Cifar(CIFAR100, root, download)
