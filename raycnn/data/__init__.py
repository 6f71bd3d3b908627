"""The data sets by name, and the splits of a job. A builder takes (root, download, *, options)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raycnn import seeds
from raycnn.catalogue import Catalogue
from raycnn.data.augment import TRANSFORMS, Pipeline, shape_after
from raycnn.data.cifar import cifar10
from raycnn.data.digits import digits
from raycnn.data.idx import fashion_mnist, mnist
from raycnn.data.loader import Loader
from raycnn.data.source import Source, root_of
from raycnn.data.split import draw
from raycnn.data.store import Store, Stored, open_store
from raycnn.errors import DataError, SpecError
from raycnn.shape import Shape
from raycnn.spec import Data, JobSpec

DATASETS: Catalogue[Source] = Catalogue(
    "dataset",
    "data",
    {"cifar10": cifar10, "digits": digits, "fashion_mnist": fashion_mnist, "mnist": mnist},
    group="raycnn.datasets",
)

LIMIT, VAL = 1, 2  # what a draw is for: the two must not draw alike


@dataclass(frozen=True)
class Splits:
    """The data of a job: what is trained on, validated on, and tested on once."""

    store: Store
    shape: Shape
    """Of an image as the network sees it."""
    members: dict[str, tuple[str, NDArray[np.int64]]]
    """For train, val and test: the store's split, and the rows of it."""
    pipeline: Pipeline

    @property
    def classes(self) -> tuple[str, ...]:
        return self.store.classes

    def loader(self, split: str, job: JobSpec, device: torch.device, training: bool) -> Loader:
        """Of a split: shuffled and augmented for training, else as it stands."""
        stored, members = self.members[split]
        return Loader(
            self.store.splits[stored].images,
            self.store.splits[stored].labels,
            members,
            self.pipeline if training else self.pipeline.evaluation(),
            batch_size=job.train.batch_size,
            seed=job.seed,
            shuffle=training,
            device=device,
        )


def source_of(data: Data) -> Source:
    """The source a job names. Raises SpecError when its settings do not fit the source."""
    source = DATASETS.build(data, root_of(data.root), data.download)
    for key, values in vars(data.normalize).items() if data.normalize else ():
        if len(values) != source.shape.channels:
            raise SpecError(
                f"{len(values)} numbers for images of {source.shape.channels} channels",
                f"data.normalize.{key}",
            )
    return source


def shape_seen(data: Data, source: Source) -> Shape:
    """The shape the network sees, known before any image is read."""
    return shape_after(data.transforms, source.shape)


def open_splits(job: JobSpec) -> Splits:
    """Decode the job's data unless this node has it, and draw its splits."""
    source = source_of(job.data)
    store = open_store(job.data.name, source, DATASETS.options(job.data))
    members = _members(job, store)
    mean, std = _normalisation(job.data, store.splits["train"], members["train"][1])
    transforms = [TRANSFORMS.build(choice) for choice in job.data.transforms]
    shape = shape_seen(job.data, source)
    return Splits(store, shape, members, Pipeline(transforms, mean, std))


def _members(job: JobSpec, store: Store) -> dict[str, tuple[str, NDArray[np.int64]]]:
    labels = store.splits["train"].labels
    rows = np.arange(len(labels))
    if job.data.limit and job.data.limit < len(rows):
        rows = draw(labels, job.data.limit, seeds.number(job.seed, LIMIT))
    members = {"test": ("test", np.arange(len(store.splits["test"].labels)))}
    if "val" in store.splits:
        val = "val", np.arange(len(store.splits["val"].labels))
    else:
        held = draw(labels[rows], round(job.data.val * len(rows)), seeds.number(job.seed, VAL))
        val = "train", rows[held]
        rows = np.delete(rows, held)
    if not len(rows):
        raise DataError(f"data.val {job.data.val} of {len(labels)} images leaves none to train on")
    return members | {"val": val, "train": ("train", rows)}


def _normalisation(
    data: Data, train: Stored, rows: NDArray[np.int64]
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the scale 0 to 1."""
    if data.normalize:
        return data.normalize.mean, data.normalize.std
    pixels = len(rows) * train.images[0, ..., 0].size
    total, squares = train.sums[rows].sum(0).astype(np.float64)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))  # a flat channel is left as it is
    return (mean / 255).tolist(), (std / 255).tolist()
