"""The train, val and test splits of a job."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raycnn.config.components import DATASETS, TRANSFORMS
from raycnn.config.schema import Data, JobSpec
from raycnn.data.images.build import ProgressCallback
from raycnn.data.images.cache import ImageCache, MessageCallback, open_cache
from raycnn.data.inspect.duplicates import SplitIndices, duplicates
from raycnn.data.label_arrays import LabelArray, class_counts, is_multi_label, strata
from raycnn.data.loader import Loader
from raycnn.data.sampling import stratified_fold, stratified_sample
from raycnn.data.sources.base import Source, empty_split, listed
from raycnn.data.sources.remote import RemoteSource
from raycnn.data.transforms.pipeline import Pipeline, shape_after
from raycnn.errors import DataError, SpecError
from raycnn.filesystem import is_uri
from raycnn.models.weights import published_normalization
from raycnn.paths import data_root
from raycnn.runtime import memory, rng
from raycnn.shape import Shape

LOCAL_SOURCES = ("csv", "folder", "hdf5")  # these read only local files: a URI is copied first
LIMIT, VAL = 1, 2  # separate random streams, so that the two samples are independent


@dataclass(frozen=True)
class Splits:
    """The data of a job: the image cache, and which rows of it are train, val and test."""

    cache: ImageCache
    shape: Shape
    """The shape of an image as the network sees it, after the transforms."""
    members: SplitIndices
    """For train, val and test: the source's split that holds its images, and their rows in it."""
    pipeline: Pipeline
    warnings: list[str]
    """Warnings for the user: what was left out, ignored, converted or duplicated."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.cache.classes

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return is_multi_label(self.cache.splits["train"].labels)

    def labels(self, split: str) -> LabelArray:
        """Return the labels (n,) or (n, K) of the images of a split that are used."""
        source_split, members = self.members[split]
        return self.cache.splits[source_split].labels[members]

    def loader(self, split: str, job: JobSpec, device: torch.device, training: bool) -> Loader:
        """Return the loader of a split: shuffled and augmented for training, else in order."""
        source_split, members = self.members[split]
        return Loader(
            self.cache.splits[source_split].images,
            self.cache.splits[source_split].labels,
            members,
            self.pipeline if training else self.pipeline.evaluation(),
            batch_size=job.train.batch_size,
            seed=job.seed,
            shuffle=training,
            balanced=job.train.balanced,
            device=device,
        )


def source_of(data: Data) -> Source:
    """Return the source of a job. Raises SpecError if `data.normalize` has other channels."""
    source = _build(data)
    for key, values in vars(data.normalize).items() if data.normalize else ():
        if len(values) != source.shape.channels:
            raise SpecError(
                f"{len(values)} numbers for images of {source.shape.channels} channels",
                f"data.normalize.{key}",
            )
    return source


def is_copied(data: Data) -> bool:
    """Return whether the files of a job are at a URI, and are copied before they are read."""
    return data.name in LOCAL_SOURCES and is_uri(str(data.options.get("path", "")))


def _build(data: Data) -> Source:
    """Build the source below the data root, or below a local copy of the files at a URI."""
    if not is_copied(data):
        return DATASETS.build(data, data_root(data.root), data.download)
    local = data.model_copy(update={"path": None})
    files = [v for key, v in DATASETS.options(data).items() if key.endswith("_file") and v]
    build = partial(DATASETS.build, local)
    return RemoteSource(
        DATASETS.options(data)["path"], lambda folder: build(folder, data.download), files or None
    )


def check_single_label(job: JobSpec, multi_label: bool) -> None:
    """Raise SpecError for settings that need one class per image if the data is multi-label."""
    if multi_label and job.train.distillation:
        raise SpecError(
            "is for one class per image, and this data set is multi-label",
            "train.distillation",
        )
    if multi_label and job.train.balanced:
        raise SpecError(
            "is for one class per image, and this data set is multi-label: "
            "`train.class_weights: balanced` weights them",
            "train.balanced",
        )


def input_shape(data: Data, source: Source) -> Shape:
    """Return the shape of an image after the transforms, without reading all images."""
    return shape_after(data.transforms, source.shape)


def check_source(source: Source) -> list[str]:
    """Read the labels and a sample of the images, as training does, and return the warnings.

    Raises DataError for what training would reject before it decodes all images.
    """
    memory.require_memory(2 * math.prod(source.shape), f"one image of {source.shape}")
    splits = source.read()
    warnings = [text for split in splits.values() for text in split.warnings]
    for name, split in splits.items():
        if not len(split.labels):
            raise empty_split(name)
    warnings += _single_image_warning(splits["train"].labels, source.classes)
    return list(dict.fromkeys(warnings))


def open_splits(
    job: JobSpec,
    progress: ProgressCallback | None = None,
    on_message: MessageCallback | None = None,
) -> Splits:
    """Open the image cache of a job, decoding the images if this node has none, and split it.

    `progress` is called with the numbers of decoded and of all images, `on_message` with a message
    when another process is waited for. Raises DataError if more than `data.max_bad` images cannot
    be read, or a split is empty, and EnvironmentUnavailable if the cache cannot be used.
    """
    source = source_of(job.data)
    cache = open_cache(
        job.data.name,
        source,
        DATASETS.options(job.data),
        mode=job.data.cache,
        max_bad=job.data.max_bad,
        progress=progress,
        on_message=on_message,
    )
    if "val" in cache.splits and (job.data.fold or not job.data.val):
        cache = cache.with_val_in_train()
    check_single_label(job, is_multi_label(cache.splits["train"].labels))
    members = _members(job, cache)
    mean, std = _normalization(job, cache, members["train"][1])
    transforms = [TRANSFORMS.build(choice) for choice in job.data.transforms]
    shape = input_shape(job.data, source)
    warnings = [*cache.warnings, *(f"left out: {error}" for error in cache.unreadable)]
    warnings += _class_warnings(cache, members) + duplicates(cache, members)
    return Splits(cache, shape, members, Pipeline(transforms, mean, std), warnings)


def _members(job: JobSpec, cache: ImageCache) -> SplitIndices:
    labels = strata(cache.splits["train"].labels)
    rows = np.arange(len(labels))
    if job.data.limit and job.data.limit < len(rows):
        rows = stratified_sample(labels, job.data.limit, rng.number(job.seed, LIMIT))
    members = {"test": ("test", np.arange(len(cache.splits["test"].labels)))}
    if "val" in cache.splits:
        val = "val", np.arange(len(cache.splits["val"].labels))
    else:
        held_out = _validation_indices(job, labels[rows])
        val = "train", rows[held_out]
        rows = np.delete(rows, held_out)
    if not len(rows):
        raise DataError(f"data.val {job.data.val} of {len(labels)} images leaves none to train on")
    return members | {"val": val, "train": ("train", rows)}


def _validation_indices(job: JobSpec, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the held-out validation images."""
    seed = rng.number(job.seed, VAL)
    if job.data.fold:
        fold, folds = job.data.fold
        return stratified_fold(labels, fold, folds, seed)
    return stratified_sample(labels, round(job.data.val * len(labels)), seed, keep_one=True)


def _class_warnings(cache: ImageCache, members: SplitIndices) -> list[str]:
    """Return warnings for classes without a training image, and for those with a single one."""
    warnings = _single_image_warning(cache.splits["train"].labels, cache.classes)
    source_split, rows = members["train"]
    counts = class_counts(cache.splits[source_split].labels[rows], len(cache.classes))
    if len(empty := [cache.classes[k] for k in np.flatnonzero(counts == 0)]):
        warnings.append(f"{len(empty):,} classes have no image to train on: {listed(empty)}")
    return warnings


def _single_image_warning(labels: LabelArray, classes: tuple[str, ...]) -> list[str]:
    counts = class_counts(labels, len(classes))
    single = [classes[k] for k in np.flatnonzero(counts == 1)]
    text = f"{len(single):,} classes have a single image, which stays in train: {listed(single)}"
    return [text] if single else []


def _normalization(
    job: JobSpec, cache: ImageCache, rows: NDArray[np.int64]
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel, on the scale 0 to 1."""
    if job.data.normalize:
        return job.data.normalize.mean, job.data.normalize.std
    if expected := published_normalization(job.model, cache.shape.channels):
        return expected
    pixels = len(rows) * cache.shape.height * cache.shape.width
    total, squares = cache.splits["train"].sums[rows].sum(0).astype(np.float64)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))  # a constant channel has 0
    return (mean / 255).tolist(), (std / 255).tolist()
