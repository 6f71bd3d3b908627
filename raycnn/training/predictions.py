"""Predictions for every image of a split, gathered from all workers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycnn.data.label_arrays import LabelArray, is_multi_label
from raycnn.data.loader import Loader
from raycnn.runtime import distributed
from raycnn.training.multi_label import THRESHOLD

LIMIT = 2**26  # maximum number of probabilities kept for a split: 256 MiB of float32
TOP = 20  # probabilities kept for each image of a split with more than LIMIT


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions for the N images of a split, in the split's order."""

    samples: NDArray[np.int64]
    """(N,) row of each image in its split of the source: for images held out, in train."""
    labels: LabelArray
    """(N,) true classes, or multi-label (N, K)."""
    predicted: LabelArray
    """(N,) classes with the largest logit, or (N, K) with 1 for those of at least THRESHOLD."""
    probabilities: NDArray[np.float32]
    """(N, K), or the TOP largest of each image (N, TOP), largest first."""
    classes: NDArray[np.int64] | None = None
    """(N, TOP) classes of the probabilities; None if all K were kept."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return is_multi_label(self.labels)


def probabilities_of(logits: Tensor, multi_label: bool) -> Tensor:
    """Return the float32 probabilities (B, K) of logits: softmax, or multi-label the sigmoid."""
    return torch.sigmoid(logits.float()) if multi_label else torch.softmax(logits.float(), 1)


class PredictionAccumulator:
    """An accumulator of predictions for this worker's share, without host synchronization.

    All K probabilities of each image are kept if the split has at most `limit` of them, else the
    TOP largest, so that memory depends on the number of images, not of classes. Multi-label
    probabilities are all kept.
    """

    def __init__(self, loader: Loader, classes: int, limit: int = LIMIT):
        self.loader = loader
        self.multi_label = is_multi_label(loader.labels)
        too_many = loader.samples * classes > limit and classes > TOP
        self.top = TOP if too_many and not self.multi_label else None
        no_rows, width = torch.zeros(0, dtype=torch.int64), self.top or classes
        no_multi_label = torch.zeros(0, classes, dtype=torch.uint8)
        predicted = no_multi_label if self.multi_label else no_rows
        columns = [no_rows, predicted, torch.zeros(0, width)]
        # A worker without any images must still take part in gathering.
        self._parts = [[*columns, no_rows.new_zeros(0, width)] if self.top else columns]

    def add(self, position: int, logits: Tensor) -> None:
        """Add the logits (B, K) of consecutive images of the split from `position` on."""
        probabilities = probabilities_of(logits.detach(), self.multi_label)
        if self.multi_label:
            columns = [(probabilities >= THRESHOLD).byte(), probabilities]
        else:
            columns = [logits.detach().argmax(1), probabilities]
        if self.top:
            largest = probabilities.topk(self.top, 1)
            columns[1:] = [largest.values, largest.indices]
        positions = torch.arange(position, position + len(logits))
        # The copies are queued on the device; `gather` waits for them.
        on_cpu = (tensor.to("cpu", non_blocking=True) for tensor in columns)
        self._parts.append([positions, *on_cpu])

    def gather(self, device: torch.device) -> SplitPredictions | None:
        """Return the predictions of all workers on rank 0, None on all other ranks."""
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
