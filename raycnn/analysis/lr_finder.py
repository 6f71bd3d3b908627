"""Learning-rate range test, with exponentially growing rates.

Smith, "Cyclical learning rates for training neural networks", WACV 2017 (arXiv:1506.01186),
section 3.3.
"""

import math
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
import torch
from numpy.typing import NDArray

from raycnn import models
from raycnn.config.schema import JobSpec
from raycnn.data.splits import open_splits
from raycnn.errors import JobFailed
from raycnn.runs.teacher import load_job_teacher
from raycnn.training.callbacks import CallbackList
from raycnn.training.micro_batch import micro_batch_size, with_fitting_micro_batch
from raycnn.training.schedules import Rates
from raycnn.training.setup import load_initial_weights, loss_weights, new_training_state
from raycnn.training.step import TrainStep

DIVERGENCE_FACTOR = 3.0  # the test ends when the loss exceeds its minimum by this factor
SMOOTHED_SHARE = 0.03  # standard deviation of the smoothing, as a share of the steps
MIN_STEPS = 10


@dataclass(frozen=True)
class RangeTest:
    """The loss at each learning rate, from small to large."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    """(N,): the mean loss over the batch before the step at each rate."""

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """The losses (N,) smoothed by a Gaussian filter over steps."""
        steps = np.arange(len(self.losses))
        width = max(1.0, SMOOTHED_SHARE * len(steps))
        weights = np.exp(-(((steps[:, None] - steps) / width) ** 2) / 2)
        return (weights @ self.losses) / weights.sum(1)

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls most steeply, before its minimum."""
        smoothed = self.smoothed
        end = max(2, int(np.argmin(smoothed)) + 1)
        steepest = int(np.argmin(np.gradient(smoothed[:end], np.log(self.rates[:end]))))
        return float(f"{self.rates[steepest]:.2g}")


def find_lr(
    job: JobSpec, device: torch.device, low: float = 1e-6, high: float = 10.0, steps: int = 100
) -> RangeTest:
    """Train from the job's initial weights at rates from `low` to `high`, until the loss diverges.

    No run or checkpoint is read or written. Raises JobFailed when the loss diverges within the
    first MIN_STEPS steps.
    """
    job = job.change({"train.ema": None, "stages": []})
    splits = open_splits(job)
    state = new_training_state(job, splits, device)
    if job.model.weights:
        load_initial_weights(state, job)
    growth = (high / low) ** (1 / (steps - 1))
    step = TrainStep(
        replica=state.model, state=state, job=job,
        schedule=lambda k: Rates(low * growth**k / state.optimizer.lr),
        micro_batch=micro_batch_size(job.train),
        class_weights=loss_weights(job, splits, device),
        teacher=load_job_teacher(job, splits, device),
    )  # fmt: skip
    step = with_fitting_micro_batch(step, splits.shape, CallbackList())
    models.begin_training(state.model)
    loader = splits.loader("train", job, device, training=True)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in count())
    losses: list[float] = []
    for k, batch in enumerate(islice(batches, steps)):
        _, loss = step(batch, k)
        losses.append(loss.item() / batch.total)
        if not math.isfinite(losses[-1]) or losses[-1] > DIVERGENCE_FACTOR * min(losses):
            losses.pop()
            break
    if len(losses) < MIN_STEPS:
        raise JobFailed(f"the loss diverges after {len(losses)} steps; start with a smaller rate")
    return RangeTest(low * growth ** np.arange(len(losses)), np.array(losses))
