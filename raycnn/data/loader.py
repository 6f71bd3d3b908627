"""Load batches: each worker's share is a function of (seed, epoch, step, rank, world size).

The epoch's permutation is cut into global batches, and each global batch into the workers' shares.
No image is dropped or repeated; the last batch, and some shares, may be smaller. Images that fit
into the memory of the device are copied there once, and gathered there.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycnn.background import prefetch
from raycnn.data import sampling
from raycnn.data.label_arrays import LabelArray, is_multi_label
from raycnn.data.sources.base import Images
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.runtime import distributed, rng
from raycnn.runtime.device import DEVICE_KINDS

IGNORE_INDEX = -100  # the label that cross_entropy ignores
MAX_SHARE = 1 / 4  # of the free memory of a device, up to which the images of a split stay there
CHUNK_BYTES = 2**26  # size of the images that are copied there at once

log = logging.getLogger("raycnn")


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    images: Tensor
    """(B, C, H, W) float32, normalized, on the device."""
    labels: Tensor
    """(B,) int64, or multi-label (B, K) uint8, on the device."""
    mixed_labels: Tensor | None
    """Labels of the images mixed into these, of the same form; None without mix-up or CutMix."""
    mix_weights: Tensor | None
    """(B,) float32: the weight of an image's own label; the mixed label has the rest."""
    first: int
    """The row of the first image in the global batch."""
    total: int
    """The number of images in the global batch."""
    count: int
    """The number of images that enter the loss: B, or 0 if this worker has no share."""


class Loader:
    """Iterates over this worker's batches of some rows of a split.

    `images` (N, H, W, C) uint8, in memory or decoded on access, and `labels` (N,) or (N, K) hold
    the split; `members` (n,) are the rows to read. With `shuffle` they follow the epoch's
    permutation, else they stay in order; with `shuffle` and `balanced` an epoch is n samples of
    `members` in which every class is equally frequent.
    """

    def __init__(
        self,
        images: Images,
        labels: LabelArray,
        members: NDArray[np.int64],
        pipeline: Pipeline,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        balanced: bool = False,
        device: torch.device,
    ):
        self.images, self.labels, self.members = images, labels, members
        self.pipeline, self.batch_size, self.seed = pipeline, batch_size, seed
        self.shuffle, self.balanced, self.device = shuffle, balanced, device

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return math.ceil(len(self.members) / self.batch_size)

    @property
    def samples(self) -> int:
        return len(self.members)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this worker's share of every batch of an epoch, from step `start` on."""
        order, keys = self._order(epoch)
        cuts = (slice(i * self.batch_size, (i + 1) * self.batch_size) for i in range(len(self)))
        batches = ((order[cut], keys[cut]) for cut in islice(cuts, start, None))
        # Copied to the device here, since several threads gather.
        gather = partial(self._gather, epoch, self._on_device)
        # On a CPU prefetch threads take a core from training: they pay only if images are decoded.
        pays = self.device.type != "cpu" or not isinstance(self.images, np.ndarray)
        shares = prefetch(gather, batches) if pays else map(gather, batches)
        for images, labels, numbers, *share in shares:
            images = self.pipeline(images, numbers)
            mixed_labels = mix_weights = None
            if self.pipeline.mixes:
                images, mix_weights = self.pipeline.mixed(images, numbers)
                labels, mixed_labels = labels[:-1], labels[1:]
            yield Batch(images, labels, mixed_labels, mix_weights, *share)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices into `members` (n,), and the key of each one's random numbers (n,)."""
        chosen = np.arange(len(self.members))
        repeats: int | NDArray[np.int64] = 0
        if self.balanced and self.shuffle:
            labels = self.labels[self.members]
            chosen, repeats = sampling.balanced_sample(labels, self.seed, epoch)
        keys = self.members[chosen] + len(self.labels) * repeats
        if not self.shuffle:
            return chosen, keys
        order = rng.order(self.seed, epoch, len(chosen))
        return chosen[order], keys[order]

    def _gather(
        self, epoch: int, on_device: Tensor | None, batch: tuple[NDArray[np.int64], ...]
    ) -> tuple[Any, ...]:
        """Return this worker's share of a batch, given as its indices and their keys."""
        batch_indices, keys = batch
        total = len(keys)
        rank, world = distributed.rank(), distributed.world_size()
        first, last = (total * r // world for r in (rank, rank + 1))
        # Every worker must take part in every step: one without a share takes an ignored image.
        indices = np.arange(first, max(last, first + 1))
        if self.pipeline.mixes:  # add one image: the partner of the last
            indices = np.append(indices, (indices[-1] + 1) % total)
        share = batch_indices[indices]
        labels = self.labels[self.members[share]]
        if last == first and not is_multi_label(labels):
            labels = np.full(len(share), IGNORE_INDEX)
        if on_device is None:
            images = self._move(self.images[self.members[share]])
        else:
            images = on_device.index_select(0, self._move(share))
        numbers = self.pipeline.random_numbers(self.seed, epoch, keys[indices])
        moved = images.permute(0, 3, 1, 2), self._move(labels), self._move(numbers)
        return *moved, first, total, last - first

    @cached_property
    def _on_device(self) -> Tensor | None:
        """The images (n, H, W, C) of `members`, copied to the device; None if they do not fit."""
        if not isinstance(self.images, np.ndarray):  # they are decoded on every access
            return None
        count, image_bytes = len(self.members), self.images[:1].nbytes
        free = DEVICE_KINDS[self.device.type].free_bytes(self.device)
        if not 0 < count * image_bytes <= MAX_SHARE * free:
            return None
        shape = (count, *self.images.shape[1:])
        copied = torch.empty(shape, dtype=torch.uint8, device=self.device)
        chunk = max(1, CHUNK_BYTES // image_bytes)
        for rows in (slice(start, start + chunk) for start in range(0, count, chunk)):
            copied[rows] = self._move(self.images[self.members[rows]])
        size = count * image_bytes / 1e6
        log.info(f"{count:,} images, {size:,.1f} MB, stay on {self.device}: {free / 1e6:,.1f} free")
        return copied

    def _move(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if DEVICE_KINDS[self.device.type].pins_memory:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
