"""The training step: one optimizer update on one global batch, shared among the workers."""

import math
from collections.abc import Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from raycnn.config.schema import JobSpec, Train
from raycnn.data.loader import Batch
from raycnn.errors import SpecError
from raycnn.models import dropout
from raycnn.runtime import distributed, rng
from raycnn.runtime.device import layout
from raycnn.training.checkpoint import TrainingState
from raycnn.training.distillation import Teacher, soft_loss
from raycnn.training.schedules import Schedule

NOISE = 3  # key of the seed for dropout; others are LIMIT and VAL in raycnn/data
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainStep:
    """A callable training step: forward and backward passes, and the update."""

    replica: nn.Module
    """The state's model, wrapped in DDP if there are several workers."""
    state: TrainingState
    schedule: Schedule
    job: JobSpec
    micro_batch: int
    """Number of images per forward pass."""
    class_weights: Tensor | None
    """Weight (K,) of each class in the loss; None if all are equal."""
    teacher: Teacher | None = None
    """The network whose outputs the job learns, if it has `train.distillation`."""

    def __call__(self, batch: Batch, step_index: int) -> tuple[Tensor, Tensor]:
        """Run one step of the run; `step_index` counts them from 0.

        Return the logits (B, K) of this worker's share, and its summed loss ().
        """
        optimizer, scale, ema = self.state.optimizer, self.state.scale, self.state.ema
        dropout_seed = rng.number(self.job.seed, NOISE, step_index)
        logits, loss = self._gradients(batch, dropout_seed)
        if scale:
            scale.unscale(optimizer.gradients())
        if self.job.train.clip_norm:
            nn.utils.clip_grad_norm_(optimizer.parameters.values(), self.job.train.clip_norm)
        optimizer.step(self.schedule(step_index), scale.overflow if scale else None)
        optimizer.zero_grad()
        if scale:
            scale.update()
        if ema:
            ema.update(step_index)
        return logits, loss

    def _gradients(self, batch: Batch, dropout_seed: int) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of the share, one micro-batch at a time."""
        logits, losses = [], []
        parts = self._micro_batches(batch)
        for part in parts:
            dropout.seed_step(dropout_seed, part.first, part.total, part.images.device)
            with distributed.no_sync(self.replica, enabled=part is not parts[-1]):
                part_logits, loss = self.loss(part)
                # DDP averages over workers, whose shares may differ: scale to the batch mean.
                mean = loss * (distributed.world_size() / batch.total)
                (self.state.scale.factor * mean if self.state.scale else mean).backward()
            logits.append(part_logits.detach())
            losses.append(loss.detach())
        return torch.cat(logits), torch.stack(losses).sum()

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        if self.job.train.sync_batch_norm:
            return split_alike(batch, self.micro_batch, distributed.world_size())
        return split_micro_batches(batch, self.micro_batch)

    def loss(self, part: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) of a micro-batch, and its summed loss ()."""
        settings = self.job.train
        if not (self.teacher and settings.distillation):
            return forward(self.replica, part, settings, self.class_weights)
        with autocast(settings.precision, part.images.device):
            teacher_logits = self.teacher(part.images)
        logits, hard = forward(self.replica, part, settings, self.class_weights)
        soft = soft_loss(logits, teacher_logits, settings.distillation.temperature)
        # A worker without a share has an image that does not count: forward ignores its label.
        return logits, torch.lerp(hard, soft * bool(part.count), settings.distillation.alpha)


def unlabeled_batch(images: Tensor, total: int) -> Batch:
    """Return images (B, C, H, W), with labels of 0, as the first of a global batch of `total`."""
    count = len(images)
    labels = torch.zeros(count, dtype=torch.int64, device=images.device)
    return Batch(images, labels, None, None, first=0, total=total, count=count)


def split_micro_batches(batch: Batch, size: int) -> list[Batch]:
    """Split a worker's share of a batch into micro-batches of at most `size` images."""
    count = len(batch.images)
    return _cut(batch, [*range(0, count, size), count])


def split_alike(batch: Batch, size: int, workers: int) -> list[Batch]:
    """Split a worker's share into as many micro-batches as every other worker, none of them empty.

    Batch norm that is synchronized exchanges its statistics in every forward pass, so all workers
    need the same number of passes. They are of `size` images at most, or of 2 if `size` is 1.
    """
    smallest, rest = divmod(batch.total, workers)  # shares differ by one at most
    parts = max(1, min(math.ceil((smallest + bool(rest)) / size), smallest))
    return _cut(batch, [len(batch.images) * part // parts for part in range(parts + 1)])


def _cut(batch: Batch, bounds: list[int]) -> list[Batch]:
    keys = [
        key
        for key in ("images", "labels", "mixed_labels", "mix_weights")
        if getattr(batch, key) is not None
    ]
    parts = []
    for start, end in pairwise(bounds):
        tensors = {key: getattr(batch, key)[start:end] for key in keys}
        count = len(tensors["labels"]) if batch.count else 0
        parts.append(replace(batch, first=batch.first + start, count=count, **tensors))
    return parts


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a precision: `fp32`, `bf16` or `fp16`."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def forward(
    model: nn.Module, batch: Batch, settings: Train, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) and the summed loss (), with class weights (K,)."""
    device = batch.images.device
    images = batch.images.contiguous(memory_format=layout(device, settings.channels_last))
    with autocast(settings.precision, device):
        logits = model(images)

    def loss(labels: Tensor, reduction: str) -> Tensor:
        smoothing = settings.label_smoothing
        if labels.ndim == 2:
            losses = _binary_cross_entropy(logits.float(), labels, weights, smoothing)
            losses = losses[: batch.count]
            return losses if reduction == "none" else losses.sum()
        return F.cross_entropy(
            logits.float(), labels, weights, reduction=reduction, label_smoothing=smoothing
        )

    if batch.mixed_labels is None or batch.mix_weights is None:
        return logits, loss(batch.labels, "sum")
    losses, mixed_losses = loss(batch.labels, "none"), loss(batch.mixed_labels, "none")
    return logits, torch.lerp(mixed_losses, losses, batch.mix_weights).sum()


def _binary_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float
) -> Tensor:
    """Return the loss (B,) of multi-label images: the mean over the K classes.

    `weights` (K,) are those of the positives. Smoothing moves the targets 0 and 1 toward 1/2.
    """
    targets = labels.float() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(
        logits, targets, reduction="none", pos_weight=weights
    ).mean(1)


def positive_weights(setting: Any, counts: NDArray[np.int64], images: int) -> Tensor | None:
    """Return the weight (K,) of the positives of each multi-label class; None without weights.

    `counts` (K,) are the training images that have each class, of `images` in all. `balanced` is
    the number of negatives for each positive. See `class_weights`.
    """
    if setting == "balanced":
        positives = np.maximum(counts, 1)
        return torch.from_numpy(np.maximum(images - counts, 1) / positives).float()
    if setting is None:
        return None
    _check_length(setting, len(counts))
    return torch.tensor(setting, dtype=torch.float32)


def _check_length(weights: Sized, classes: int) -> None:
    if len(weights) != classes:
        raise SpecError(f"{len(weights)} numbers for {classes} classes", "train.class_weights")


def class_weights(setting: Any, counts: NDArray[np.int64]) -> Tensor | None:
    """Return class weights (K,) with mean 1 over the training images; None without weights.

    `setting` is that of the spec, `counts` (K,) the training images of each class. Raises
    SpecError if the number of weights differs from the number of classes.
    """
    if setting is None:
        return None
    if setting == "balanced":
        setting = 1 / np.maximum(counts, 1)
    _check_length(setting, len(counts))
    weights = np.asarray(setting, np.float64)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
