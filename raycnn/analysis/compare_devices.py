"""Compare losses and gradients of the same training steps on several devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice

import torch
from torch import Tensor

from raycnn import models
from raycnn.config.components import SCHEDULES
from raycnn.config.schema import JobSpec
from raycnn.data.loader import Batch
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import SpecError
from raycnn.models.dropout import Dropout
from raycnn.runs.teacher import load_job_teacher
from raycnn.runtime import device
from raycnn.training.callbacks import CallbackList
from raycnn.training.micro_batch import micro_batch_size, with_fitting_micro_batch
from raycnn.training.schedules import Schedule
from raycnn.training.setup import load_initial_weights, loss_weights, new_training_state
from raycnn.training.step import TrainStep


@dataclass(frozen=True)
class StepDifference:
    """The difference between a device and the first one, at one step."""

    step: int
    """The step, from 1."""
    name: str
    """The kind of device that is compared with the first."""
    loss: float
    """The loss on the first device, averaged over the batch."""
    loss_gap: float
    largest: float
    """The largest absolute gradient of any weight on the first device."""
    gap: float
    """The largest absolute difference between the gradients of any weight."""
    where: str
    """The parameter with the largest difference."""

    @property
    def relative(self) -> float:
        """The gap relative to the largest gradient."""
        return self.gap / self.largest if self.largest else self.gap


@dataclass(frozen=True)
class _TracedStep(TrainStep):
    """A training step that records its gradients."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    """The gradient of each parameter before clipping, on the CPU."""

    def _gradients(self, batch: Batch, dropout_seed: int) -> tuple[Tensor, Tensor]:
        result = super()._gradients(batch, dropout_seed)
        factor = self.state.scale.factor.item() if self.state.scale else 1.0
        for name, parameter in self.state.optimizer.parameters.items():
            assert parameter.grad is not None
            self.gradients[name] = (parameter.grad / factor).cpu()
        return result


def compare_steps(job: JobSpec, names: Sequence[str], steps: int) -> Iterator[StepDifference]:
    """Train the same steps on all devices, and yield their differences from the first one.

    All devices start with the same weights and use the same batches, augmented on the CPU; their
    weights are not synchronized afterwards. Dropout is disabled, since kinds of devices generate
    different random numbers. Raises EnvironmentUnavailable for an unavailable device, and SpecError
    for fewer than two.
    """
    if len(names) < 2:
        raise SpecError(f"--devices lists {len(names)}: at least two are needed")
    kinds = [device.find(name) for name in names]
    for kind in kinds:
        device.check_training(job.train, kind.name)
    splits = open_splits(job)
    loader = splits.loader("train", job, torch.device("cpu"), training=True)
    schedule = SCHEDULES.build(job.schedule, job.train.epochs * len(loader))
    devices = [kind.select(0, job.workers.cpus) for kind in kinds]
    traced = [_traced_step(job, splits, schedule, chosen) for chosen in devices]
    size = min(step.micro_batch for step in traced)  # with batch norm, all need the same
    traced = [replace(step, micro_batch=size) for step in traced]
    batches = chain.from_iterable(map(loader.epoch, count()))
    for k, batch in enumerate(islice(batches, steps)):
        losses = [_take(step, batch, k) for step in traced]
        for kind, step, loss in zip(kinds[1:], traced[1:], losses[1:], strict=True):
            pair = losses[0], loss
            yield _difference(k + 1, kind.name, pair, traced[0].gradients, step.gradients)


def _traced_step(
    job: JobSpec, splits: Splits, schedule: Schedule, chosen: torch.device
) -> _TracedStep:
    state = new_training_state(job, splits, chosen)
    if job.model.weights:
        load_initial_weights(state, job)
    step = _TracedStep(
        replica=state.model,
        state=state,
        schedule=schedule,
        job=job,
        micro_batch=micro_batch_size(job.train),
        class_weights=loss_weights(job, splits, chosen),
        teacher=load_job_teacher(job, splits, chosen),
    )
    step = with_fitting_micro_batch(step, splits.shape, CallbackList())
    models.begin_training(state.model)
    for module in state.model.modules():
        if isinstance(module, Dropout):
            module.eval()
    return step


def _take(step: _TracedStep, batch: Batch, k: int) -> float:
    """Take step `k` on the batch, moved to the step's device; return the mean loss."""
    kind = next(step.state.model.parameters()).device
    moved = {
        key: tensor.to(kind)
        for key in ("images", "labels", "mixed_labels", "mix_weights")
        if (tensor := getattr(batch, key)) is not None
    }
    _, loss = step(replace(batch, **moved), k)
    return loss.item() / batch.total


def _difference(
    step: int,
    name: str,
    losses: tuple[float, float],
    gradients: dict[str, Tensor],
    other_gradients: dict[str, Tensor],
) -> StepDifference:
    """Return the difference of a device, whose loss and gradients come second, from the first."""
    loss, other_loss = losses
    gaps = {key: (gradients[key] - other_gradients[key]).abs().max().item() for key in gradients}
    where = max(gaps, key=gaps.__getitem__)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    return StepDifference(step, name, loss, abs(loss - other_loss), largest, gaps[where], where)
