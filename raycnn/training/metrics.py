"""Loss and accuracy: accumulated on the device, reduced over all ranks once per epoch."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raycnn.runtime import distributed
from raycnn.runtime.device import DEVICE_KINDS
from raycnn.runtime.timer import PassTimer
from raycnn.training.multi_label import THRESHOLD, MultiLabelScores, multi_label_scores

TOP = 5  # acc5 counts an image as a hit if its label is among this many top predictions
BLOCK = 1024  # values in one tensor
RECENT_STEPS = 20  # number of last steps whose mean loss is shown during training
Confusion = list[list[int]]
"""A sparse confusion matrix: sorted rows [label, prediction, count] of the pairs that occur.

A dense matrix of 10,000 classes would take gigabytes.
"""


@dataclass(frozen=True)
class EpochMetrics:
    """Sums over the images of an epoch so far, on all workers."""

    loss: float = 0.0
    """Sum of the losses."""
    hits: int = 0
    """Images whose top prediction is correct."""
    top5: int = 0
    """Images whose label is among the top 5; in evaluation only."""
    marked: int | None = None
    """Multi-label only: true classes plus predicted classes; `hits` are those that are both."""
    count: int = 0
    """Number of images."""
    seconds: float = 0.0
    """Wall-clock time until this rank's device has done all steps."""
    ms_per_image: float | None = None
    """Median time of a step, or in evaluation a forward pass, per image on this rank's device."""
    data_ms_per_image: float | None = None
    """Mean time of waiting for images and preparing them, per image on this rank's device."""
    bad_step: int | None = None
    """First step with a loss that is not finite, from 0 at the last synchronization."""
    confusion: Confusion = field(default_factory=list)
    """Confusion matrix, in evaluation only."""
    multi_label: MultiLabelScores | None = None
    """Multi-label metrics, in evaluation only."""

    @property
    def mean_loss(self) -> float:
        """Mean loss per image."""
        return self.loss / max(1, self.count)

    @property
    def acc1(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.hits / max(1, self.count)

    @property
    def acc5(self) -> float:
        """Top-5 accuracy, 0 to 1."""
        return self.top5 / max(1, self.count)

    def with_times(self, timer: PassTimer) -> "EpochMetrics":
        """Return the metrics with the times per image that a timer has measured."""
        return replace(
            self, ms_per_image=timer.ms_per_image(), data_ms_per_image=timer.data_ms_per_image()
        )

    @property
    def training_values(self) -> dict[str, float]:
        """The metrics of training by name: loss, and accuracy or multi-label micro F1."""
        if self.marked is None:
            return {"loss": self.mean_loss, "acc1": self.acc1}
        return {"loss": self.mean_loss, "f1": 2 * self.hits / max(1, self.marked)}

    @property
    def values(self) -> dict[str, float]:
        """The metrics of an evaluation by name."""
        if self.multi_label:
            return {"loss": self.mean_loss, **self.multi_label.means}
        return {"loss": self.mean_loss, "acc1": self.acc1, "acc5": self.acc5}

    def plus(self, other: "EpochMetrics") -> "EpochMetrics":
        """Return the sums over both, without confusion matrices."""
        keys = ("loss", "hits", "top5", "count", "seconds")
        sums = {key: getattr(self, key) + getattr(other, key) for key in keys}
        marked = None if other.marked is None else (self.marked or 0) + other.marked
        return EpochMetrics(**sums, marked=marked, bad_step=other.bad_step)


class StepValues:
    """A value () of each step, on the device, in few tensors.

    One small tensor for each step, kept among the large ones that are freed, would leave gaps that
    are too small for large ones: a process on a CPU would grow with every step.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._count = 0

    def append(self, value: Tensor) -> None:
        """Append a value (), without waiting for the device."""
        index = self._count % BLOCK
        if not index:
            self._blocks.append(value.new_empty(BLOCK))
        self._blocks[-1][index] = value
        self._count += 1

    def all(self) -> Tensor:
        """Return all values (N,)."""
        return torch.cat(self._blocks)[: self._count] if self._blocks else torch.zeros(0)


class MetricAccumulator:
    """An accumulator of the metrics of each step, on the device, without host synchronization."""

    def __init__(self, classes: int, evaluating: bool = False):
        self.classes, self.evaluating = classes, evaluating
        self.start_time = time.perf_counter()
        self._losses, self._hits, self._top5 = StepValues(), StepValues(), StepValues()
        self._pairs: list[Tensor] = []
        self._counts: list[int] = []
        self.count = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, count: int) -> None:
        """Add a batch: summed loss (), logits (B, K), labels (B,), and its number of images."""
        self._losses.append(loss.detach())
        self._counts.append(count)
        self.count += count
        self._add_predictions(logits.detach(), labels, count)

    def _add_predictions(self, logits: Tensor, labels: Tensor, count: int) -> None:
        predicted = logits.argmax(1)
        self._hits.append((predicted == labels).sum())
        if self.evaluating:
            top = logits.topk(min(TOP, self.classes), 1).indices
            self._top5.append((top == labels[:, None]).sum())
            self._pairs.append(labels * self.classes + predicted)

    def recent_loss(self) -> Tensor:
        """Return the mean loss () of the last steps of this rank, on the device."""
        total = self._losses.all()[-RECENT_STEPS:].sum()
        return total / max(1, sum(self._counts[-RECENT_STEPS:]))

    def all_reduce(self) -> EpochMetrics:
        """Return the sums over all ranks, with one host synchronization and one all-reduce."""
        losses = self._losses.all()
        if self.evaluating:  # numbers of batches may differ between ranks
            losses = losses.sum()
        parts = [losses, self._hits.all().sum(), self._top5.all().sum(), torch.tensor(self.count)]
        own = torch.cat([part.cpu().double().reshape(-1) for part in parts])
        seconds = time.perf_counter() - self.start_time  # now that the device has done all steps
        sums = distributed.all_reduce_sum(own)
        losses, counts = sums.split([losses.numel(), 3])
        hits, top5, count = counts.long().tolist()
        bad_steps = torch.nonzero(~losses.isfinite())
        return EpochMetrics(
            loss=losses.sum().item(),
            hits=hits,
            top5=top5,
            count=count,
            seconds=seconds,
            bad_step=int(bad_steps[0]) if len(bad_steps) else None,
            confusion=self._confusion() if self.evaluating else [],
        )

    def _confusion(self) -> Confusion:
        """Return the counts of (label, prediction) pairs over all ranks."""
        pairs = torch.cat(self._pairs).cpu() if self._pairs else torch.zeros(0, dtype=torch.int64)
        pairs, counts = torch.unique(distributed.all_gather(pairs), return_counts=True)
        return torch.stack([pairs // self.classes, pairs % self.classes, counts], 1).tolist()


class MultiLabelAccumulator(MetricAccumulator):
    """An accumulator of multi-label metrics, of logits (B, K) and labels (B, K).

    In evaluation rank 0 gathers the probabilities of all images, which must fit into its memory.
    """

    def __init__(self, classes: int, evaluating: bool = False):
        super().__init__(classes, evaluating)
        self._labels = [torch.zeros(0, classes, dtype=torch.uint8)]
        self._probabilities = [torch.zeros(0, classes)]

    def _add_predictions(self, logits: Tensor, labels: Tensor, count: int) -> None:
        labels, probabilities = labels[:count], torch.sigmoid(logits[:count].float())
        predicted = probabilities >= THRESHOLD
        self._hits.append((predicted & labels.bool()).sum())
        self._top5.append(predicted.sum() + labels.sum())
        if self.evaluating:
            self._labels.append(labels)
            self._probabilities.append(probabilities)

    def all_reduce(self) -> EpochMetrics:
        """Return the sums over all ranks and, in evaluation, the metrics of all images."""
        metrics = super().all_reduce()
        scores = self._scores() if self.evaluating else None
        # The base class sums up `_top5`, in which this one counts true and predicted classes.
        return replace(metrics, top5=0, marked=metrics.top5, multi_label=scores)

    def _confusion(self) -> Confusion:
        return []

    def _scores(self) -> MultiLabelScores:
        columns = [
            torch.cat([part.cpu() for part in parts])
            for parts in (self._labels, self._probabilities)
        ]
        labels, probabilities = map(distributed.gather_rows, columns)

        def compute_scores() -> MultiLabelScores:
            assert labels is not None and probabilities is not None, "rank 0 has gathered all rows"
            return multi_label_scores(labels.numpy(), probabilities.numpy())

        return distributed.broadcast_from_rank_zero(compute_scores)


def build_metric_accumulator(
    classes: int, multi_label: bool, evaluating: bool = False
) -> MetricAccumulator:
    """Return a new accumulator for single-label or multi-label metrics."""
    kind = MultiLabelAccumulator if multi_label else MetricAccumulator
    return kind(classes, evaluating)


class LossReader:
    """A reader of losses on a device that does not wait for it, but returns an earlier loss."""

    def __init__(self, device: torch.device):
        self._value: float | None = None
        self._copy_done: Any = None
        self._device = device
        if device.type != "cpu":
            self._buffer = torch.empty((), pin_memory=DEVICE_KINDS[device.type].pins_memory)

    def read(self, loss: Tensor) -> float | None:
        """Start to copy a loss () to the host; return the last one that has arrived."""
        if self._device.type == "cpu":
            return loss.item()
        if self._copy_done is None or self._copy_done.query():
            if self._copy_done:
                self._value = self._buffer.item()
            self._buffer.copy_(loss, non_blocking=True)
            self._copy_done = torch.get_device_module(self._device).Event()
            self._copy_done.record()
        return self._value


def class_metrics(confusion: Confusion, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the number of images, and precision, recall and F1 (0 to 1), of each class."""
    true, predicted, hits = ([0] * len(classes) for _ in range(3))
    for label, prediction, count in confusion:
        true[label] += count
        predicted[prediction] += count
        hits[label] += count * (label == prediction)
    return [
        {
            "class": name,
            "count": true[k],
            "precision": hits[k] / max(1, predicted[k]),
            "recall": hits[k] / max(1, true[k]),
            "f1": 2 * hits[k] / max(1, true[k] + predicted[k]),
        }
        for k, name in enumerate(classes)
    ]
