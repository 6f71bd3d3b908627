"""Who sees which image when: a pure function of (seed, epoch, step, rank, world).

The epoch's permutation is cut into global batches, each batch into the workers' shares. No image
is left out or shown twice; the last batch, and the shares, may be smaller than the others.
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycnn import dist, seeds
from raycnn.data.augment import Pipeline

T = TypeVar("T")

ABSENT = -100  # the label that cross_entropy ignores


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    images: Tensor
    """(B, C, H, W) float32, normalised, on the device."""
    labels: Tensor
    """(B,) int64, on the device."""
    first: int
    """Which row of the global batch the first image is."""
    total: int
    """How many images the global batch has."""
    count: int
    """How many of the images above count: all, or none where there was no share to give."""


class Loader:
    """Batches of some images of one split.

    `images` (N, H, W, C) uint8 and `labels` (N,) hold the split; `members` (n,) are the rows of it
    that are read. With `shuffle` they come in the order of the epoch's permutation, else as listed.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        members: NDArray[np.int64],
        pipeline: Pipeline,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        device: torch.device,
    ):
        self.images, self.labels, self.members = images, labels, members
        self.pipeline, self.batch_size, self.seed = pipeline, batch_size, seed
        self.shuffle, self.device = shuffle, device

    def __len__(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.members) / self.batch_size)

    @property
    def samples(self) -> int:
        return len(self.members)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This worker's share of every batch of an epoch, from step `start` on."""
        rows = self.members
        if self.shuffle:
            rows = rows[seeds.order(self.seed, epoch, len(rows))]
        batches = (rows[i * self.batch_size :][: self.batch_size] for i in range(start, len(self)))
        shares = self._gather(epoch, batches)
        if self.device.type != "cpu":  # there, a second thread only takes a core from the network
            shares = ahead(shares)
        for images, labels, numbers, *share in shares:
            yield Batch(self.pipeline(images, numbers), labels, *share)

    def _gather(
        self, epoch: int, batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[Any, ...]]:
        rank, world = dist.rank(), dist.world()
        for batch in batches:
            first, last = (len(batch) * r // world for r in (rank, rank + 1))
            # A worker must go through every step: without a share it takes an image that counts 0.
            share = batch[first:last] if last > first else batch[:1]
            labels = self.labels[share] if last > first else np.full(1, ABSENT)
            numbers = seeds.uniform(self.seed, epoch, share, self.pipeline.numbers)
            images = self.images[share].transpose(0, 3, 1, 2)  # channels_last without a copy
            moved = (self._move(part) for part in (images, labels, numbers))
            yield *moved, first, len(batch), last - first

    def _move(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by another thread while its predecessor is used."""
    done = object()
    with ThreadPoolExecutor(1, "reader") as thread:
        following = thread.submit(next, items, done)
        while (item := following.result()) is not done:
            following = thread.submit(next, items, done)
            yield item  # type: ignore[misc]
