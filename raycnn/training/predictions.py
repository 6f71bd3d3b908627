"""What a network predicts for every image of a split, gathered from all workers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycnn.data.loader import Loader
from raycnn.runtime import distributed

LIMIT = 2**26  # probabilities of a split that are all kept: 256 MiB of float32
TOP = 20  # of each image, in a split that has more


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions for the N images of a split, in the split's order."""

    samples: NDArray[np.int64]
    """(N,) rows of the source's own split; validation images taken from train keep theirs."""
    labels: NDArray[np.int64]
    """(N,)"""
    predicted: NDArray[np.int64]
    """(N,) the class with the largest logit."""
    probabilities: NDArray[np.float32]
    """(N, K), or the largest (N, TOP) of each image, largest first."""
    classes: NDArray[np.int64] | None = None
    """(N, TOP) the classes that the probabilities are of, where not all K were kept."""

    def __len__(self) -> int:
        return len(self.labels)


class PredictionCollector:
    """Takes this worker's share of every batch without waiting for the device.

    All K probabilities of each image are kept if those of the split are no more than `limit`, else
    the TOP largest: memory is bounded by the split's images, whatever the number of classes.
    """

    def __init__(self, loader: Loader, classes: int, limit: int = LIMIT):
        self.loader = loader
        self.top = TOP if loader.samples * classes > limit and classes > TOP else None
        none, width = torch.zeros(0, dtype=torch.int64), self.top or classes
        empty = [none, none, torch.zeros(0, width)]
        # A worker without any share takes part in gathering all the same.
        self._parts = [[*empty, none.new_zeros(0, width)] if self.top else empty]

    def add(self, position: int, logits: Tensor) -> None:
        """Take logits (B, K) of images that follow one another in the split from `position` on."""
        probabilities = torch.softmax(logits.detach().float(), 1)
        found = [logits.detach().argmax(1), probabilities]
        if self.top:
            largest = probabilities.topk(self.top, 1)
            found[1:] = [largest.values, largest.indices]
        positions = torch.arange(position, position + len(logits))
        # Into pinned memory, behind what the device still has to do; `gather` waits for it.
        moved = (tensor.to("cpu", non_blocking=True) for tensor in found)
        self._parts.append([positions, *moved])

    def gather(self, device: torch.device) -> SplitPredictions | None:
        """Return the predictions of all workers on rank 0, None on the others."""
        torch.get_device_module(device).synchronize()
        columns = [torch.cat(column) for column in zip(*self._parts, strict=True)]
        gathered = [distributed.gather_rows(column) for column in columns]
        if any(column is None for column in gathered):
            return None
        positions, predicted, probabilities, *classes = (c for c in gathered if c is not None)
        order = positions.argsort()
        rows = self.loader.members
        return SplitPredictions(
            rows,
            self.loader.labels[rows],
            predicted[order].numpy(),
            probabilities[order].numpy(),
            classes[0][order].numpy() if classes else None,
        )
