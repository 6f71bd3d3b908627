"""CIFAR-10: "Learning Multiple Layers of Features from Tiny Images", Krizhevsky 2009.

50,000 + 10,000 colour images of 32 x 32, from Hugging Face's Parquet files or from the original
pickled batches, whichever is there.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from raycnn.data.source import Source, Split, check_labels, fetch, first_of
from raycnn.errors import DataError
from raycnn.shape import Shape

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ROWS = 1000
PLAIN = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class Cifar10:
    shape = Shape(3, 32, 32)
    classes: tuple[str, ...] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip

    def __init__(self, root: Path, download: bool):
        self.root, self.download = root, download

    def files(self) -> list[Path]:
        return fetch("cifar10", self.root, self.download, self._found, self._download)

    def _found(self) -> list[Path] | None:
        """Parquet files train-* and test-*, else the six batches, in reading order."""
        for folder in (self.root / "cifar10", self.root / "cifar10" / "plain_text", self.root):
            train, test = (
                sorted(folder.glob("train-*.parquet")),
                sorted(folder.glob("test-*.parquet")),
            )
            if train and test:
                return train + test
        folders = [self.root / "cifar-10-batches-py", self.root / "cifar10" / "cifar-10-batches-py"]
        return first_of(folders, BATCHES)

    def _download(self) -> None:
        from torchvision import datasets  # slow to import, seldom needed

        datasets.CIFAR10(str(self.root), download=True)

    def read(self) -> dict[str, Split]:
        parts: dict[str, list[Split]] = {"train": [], "test": []}
        for path in self.files():
            split = self._parquet(path) if path.suffix == ".parquet" else self._batch(path)
            parts["test" if path.name.startswith("test") else "train"].append(split)
        return {
            name: Split(
                np.concatenate([split.images for split in splits]),
                np.concatenate([split.labels for split in splits]),
            )
            for name, splits in parts.items()
        }

    def _batch(self, path: Path) -> Split:
        try:
            batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images = np.asarray(batch[b"data"], np.uint8).reshape(-1, *self.shape)
            labels = np.asarray(batch[b"labels"])
        except (
            OSError,
            EOFError,
            pickle.UnpicklingError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(f"{path} is not a batch of CIFAR-10: {error}") from None
        labels = check_labels(labels, len(self.classes), path)
        return Split(images.transpose(0, 2, 3, 1), labels)

    def _parquet(self, path: Path) -> Split:
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            if not {"img", "label"} <= set(names):
                raise DataError(f"{path}: columns {names}, where img and label are due")
            images = np.empty((file.metadata.num_rows, 32, 32, 3), np.uint8)
            labels, row = [], 0
            for batch in file.iter_batches(ROWS, columns=["img", "label"]):
                for cell in batch["img"].to_pylist():
                    images[row] = _decode(cell, path, row)
                    row += 1
                labels += batch["label"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path}: {error}") from None
        return Split(images, check_labels(_integers(labels, path), len(self.classes), path))


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values, and can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data needs")
        return super().find_class(module, name)


def _decode(cell: dict[str, bytes] | None, path: Path, row: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO((cell or {})["bytes"])).convert("RGB")
    except (KeyError, TypeError, UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: row {row} holds no image: {error}") from None
    if image.size != (32, 32):
        raise DataError(f"{path}: row {row} is {image.width}x{image.height}, not 32x32")
    return image


def _integers(labels: list[Any], path: Path) -> Any:
    for row, label in enumerate(labels):
        if not isinstance(label, int):
            raise DataError(f"{path}: row {row} has label {label!r}, which is no class number")
    return np.asarray(labels)


def cifar10(root: Path, download: bool) -> Source:
    return Cifar10(root, download)
