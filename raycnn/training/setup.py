"""Build the training state with its initial weights, and the training step of each stage."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raycnn import __version__, models
from raycnn.config.components import SCHEDULES
from raycnn.config.schema import JobSpec
from raycnn.data.label_arrays import class_counts
from raycnn.data.sources.base import SPLITS
from raycnn.data.splits import Splits
from raycnn.models.flops import count_flops
from raycnn.runtime import distributed
from raycnn.runtime.device import DEVICE_KINDS, layout
from raycnn.training import pretrained
from raycnn.training.callbacks import Callback, TrainingStarted
from raycnn.training.checkpoint import TrainingState
from raycnn.training.compilation import compile_in_place
from raycnn.training.distillation import Teacher
from raycnn.training.ema import EMA, copy_tensors
from raycnn.training.loss_scale import LossScale
from raycnn.training.micro_batch import micro_batch_size, with_fitting_micro_batch
from raycnn.training.optim import build_optimizer
from raycnn.training.schedules import scale_lr
from raycnn.training.step import TrainStep, class_weights, positive_weights


def new_training_state(job: JobSpec, splits: Splits, device: torch.device) -> TrainingState:
    """Return a newly initialized state, identical on every worker and for every launcher."""
    torch.manual_seed(job.seed)
    model = models.build_model(job.model, splits.shape, len(splits.classes))
    if job.train.sync_batch_norm:
        model = distributed.sync_batch_norm(model)
    model.to(device).to(memory_format=layout(device, job.train.channels_last))
    optimizer = build_optimizer(job.optimizer, model.named_parameters())
    state = TrainingState(model, optimizer, metadata(job, splits))
    if job.train.precision == "fp16":
        state.scale = LossScale(device)
    if job.train.ema:
        state.ema = EMA(job.train.ema, optimizer.parameters)
    return state


def metadata(job: JobSpec, splits: Splits) -> dict[str, Any]:
    """Return a checkpoint's description of its job: all that is needed to use its weights."""
    return {
        "spec": job.tree(),
        "classes": list(splits.classes),
        "source_shape": list(splits.cache.shape),
        "max_value": splits.cache.max_value,
        "shape": list(splits.shape),
        "mean": splits.pipeline.mean,
        "std": splits.pipeline.std,
        "multi_label": splits.multi_label,
        "data": splits.cache.fingerprint,
        "images": {name: len(rows) for name, (_, rows) in splits.members.items()},
        "versions": {"raycnn": __version__, "torch": torch.__version__},
    }


def load_initial_weights(state: TrainingState, job: JobSpec) -> pretrained.Adapted:
    """Load the weights that the job names into a new state; return which were loaded."""
    loaded = pretrained.load_pretrained(state.model, job.model)
    if state.ema:  # the average starts from the loaded weights, not from the random ones
        copy_tensors(src=state.ema.parameters, dst=state.ema.tensors)
    return loaded


def prepare(
    state: TrainingState,
    splits: Splits,
    total_steps: int,
    job: JobSpec,
    callbacks: Callback,
    teacher: Teacher | None,
) -> TrainStep:
    """Return the training step for a run of `total_steps`, with the largest micro-batch that fits.

    Raises EnvironmentUnavailable if a single image does not fit into device memory.
    """
    device = next(state.model.parameters()).device
    replica = distributed.replicate(state.model, torch.zeros(1, *splits.shape, device=device))
    train_step = TrainStep(
        replica=replica, state=state, job=job,
        schedule=scale_lr(SCHEDULES.build(job.schedule, total_steps), math.prod(state.lr_backoffs)),
        micro_batch=micro_batch_size(job.train),
        class_weights=loss_weights(job, splits, device), teacher=teacher,
    )  # fmt: skip
    train_step = with_fitting_micro_batch(train_step, splits.shape, callbacks)
    if job.train.compile:  # only now: attempts would compile the network in a mode of their own
        compile_in_place(state.model)
    return train_step


def loss_weights(job: JobSpec, splits: Splits, device: torch.device) -> Tensor | None:
    """Return the weight (K,) of each class in the loss; None if all are equal."""
    labels = splits.labels("train")
    counts = class_counts(labels, len(splits.classes))
    if splits.multi_label:
        weights = positive_weights(job.train.class_weights, counts, len(labels))
    else:
        weights = class_weights(job.train.class_weights, counts)
    return None if weights is None else weights.to(device)


def apply_stage(train_step: TrainStep, job: JobSpec) -> TrainStep:
    """Return the training step with the settings of the current epoch.

    The optimizer keeps its state.
    """
    if not job.stages:
        return train_step
    state, current_job = train_step.state, job.after(train_step.state.epoch)
    optimizer = build_optimizer(current_job.optimizer, state.model.named_parameters())
    # A stage may need tensors that the optimizer had no use for before, such as a momentum.
    kept = optimizer.state.keys() & state.optimizer.state.keys()
    optimizer.state |= {key: state.optimizer.state[key] for key in kept}
    state.optimizer = optimizer
    return replace(train_step, job=current_job)


def started_event(
    job: JobSpec, state: TrainingState, splits: Splits, device: torch.device
) -> TrainingStarted:
    """Return the event that describes the training run about to start."""
    names = DEVICE_KINDS[device.type].names()
    return TrainingStarted(
        model=job.model.name,
        parameters=models.count_parameters(state.model),
        images={split: len(splits.labels(split)) for split in SPLITS},
        device=names[device.index or 0] if names else device.type,
        workers=distributed.world_size(),
        flops=count_flops(state.model, splits.shape),
    )
