"""The training loop, in plain torch. It does not depend on the launcher, nor on Ray."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch

from raycnn import models
from raycnn.config.schema import JobSpec
from raycnn.data.loader import Loader
from raycnn.data.sources.base import SPLITS
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import Diverged, Interrupted, SpecError
from raycnn.runtime import distributed
from raycnn.runtime.deterministic import deterministic
from raycnn.runtime.device import is_out_of_memory, peak_mib
from raycnn.runtime.timer import PassTimer
from raycnn.training.autotune import autotune
from raycnn.training.callbacks import (
    Callback,
    CheckpointSaved,
    Decoding,
    EpochEnded,
    Progress,
    Resumed,
    RolledBack,
    StoppedEarly,
    StoppedOnRequest,
    Warned,
    WeightsLoaded,
)
from raycnn.training.checkpoint import Row, TrainingState
from raycnn.training.distillation import Teacher, agree_on_teacher
from raycnn.training.ema import copy_tensors
from raycnn.training.evaluation import evaluate, predict_split
from raycnn.training.interval_metrics import IntervalAccumulator, check_finite
from raycnn.training.metrics import EpochMetrics, LossReader
from raycnn.training.micro_batch import halve_micro_batch
from raycnn.training.predictions import SplitPredictions
from raycnn.training.setup import (
    apply_stage,
    load_initial_weights,
    new_training_state,
    prepare,
    started_event,
)
from raycnn.training.step import TrainStep
from raycnn.training.uncertainty import small_validation_warning

PROGRESS_INTERVAL_S = 0.25  # seconds between progress events


class TrainingHooks(Protocol):
    """The methods that the loop calls to save and restore checkpoints, and to know when to stop.

    All workers call the methods in the same order.
    """

    def restore(self, state: TrainingState) -> bool:
        """Load the run's last checkpoint into the state; return False if there is none."""

    def begin_epoch(self, state: TrainingState) -> None:
        """Prepare an epoch. To end training before it, raise an exception on every worker."""

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop. Called at every step."""

    def save(self, state: TrainingState) -> None:
        """Save a checkpoint of the state, atomically."""

    def restore_best(self, state: TrainingState) -> None:
        """Load the best checkpoint's weights into the model."""

    def load_teacher(self, job: JobSpec, splits: Splits, device: torch.device) -> Teacher:
        """Return the teacher of a job with `train.distillation`."""


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a completed training run."""

    state: TrainingState
    test: EpochMetrics | None
    """Test metrics of the best weights; None if no test was run."""
    splits: Splits
    predictions: dict[str, SplitPredictions] = field(default_factory=dict)
    """Predictions of the best weights for val and test; on rank 0 only, after a test."""
    last_epoch: EpochMetrics | None = None
    """Training metrics of the last epoch; None if no epoch was left to train."""


def fit(
    job: JobSpec,
    device: torch.device,
    hooks: TrainingHooks,
    callbacks: Callback,
    run_test: bool = True,
) -> TrainResult:
    """Train on this worker's share of every batch, from the last checkpoint on, then test.

    After a loss that is not finite, training restarts from the last checkpoint, at most
    `failure.rollbacks` times; after running out of device memory it restarts with half the
    micro-batch. Raises Diverged after the last rollback, Interrupted on a stop request, OutOfMemory
    if several workers must restart, EnvironmentUnavailable if one image does not fit, and SpecError
    if `train.deterministic` cannot be met.
    """
    with deterministic(job.train.deterministic):
        return _fit(job, device, hooks, callbacks, run_test)


def _fit(
    job: JobSpec, device: torch.device, hooks: TrainingHooks, callbacks: Callback, run_test: bool
) -> TrainResult:
    def report_decoding(done: int, total: int) -> None:
        callbacks.on_event(Decoding(done=done, total=total))

    def warn(text: str) -> None:
        callbacks.on_event(Warned(text=text))

    splits = distributed.raise_on_any_rank(lambda: open_splits(job, report_decoding, warn))
    if job.train.patience and not len(splits.labels("val")):
        share, count = job.data.val, len(splits.labels("train"))
        raise SpecError(
            f"needs images that are held out: data.val {share} of {count} images holds out none",
            "train.patience",
        )
    total_steps = job.train.epochs * math.ceil(len(splits.labels("train")) / job.train.batch_size)
    new_state = partial(new_training_state, splits=splits, device=device)
    teacher = None
    if job.train.distillation:
        teacher = agree_on_teacher(lambda: hooks.load_teacher(job, splits, device))
        callbacks.on_event(teacher.loaded)
    job = autotune(job, total_steps, splits.shape, device, new_state, teacher, callbacks)
    lr_backoffs: list[float] = []
    while True:
        has_rolled_back = bool(lr_backoffs)
        state = init_or_restore(job, splits, device, hooks, callbacks, teacher)
        # Each rollback appends a factor, so the longer list is the newer one: that of this process
        # after a rollback, that of the checkpoint after a restart of the process.
        state.lr_backoffs = max(state.lr_backoffs, lr_backoffs, key=len)
        loaders = _loaders(job, splits, device)
        train_step = prepare(state, splits, total_steps, job, callbacks, teacher)
        if not has_rolled_back:
            callbacks.on_event(started_event(job, state, splits, device))
            if text := small_validation_warning(len(splits.labels("val")), splits.multi_label):
                callbacks.on_event(Warned(text=text))
        try:
            return run_epochs(train_step, splits, loaders, hooks, callbacks, run_test)
        except Diverged as error:
            lr_backoffs = [*state.lr_backoffs, job.failure.rollback_lr]
            if len(lr_backoffs) > job.failure.rollbacks:
                raise
            callbacks.on_event(_rollback_event(error, lr_backoffs, job))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            job = halve_micro_batch(job, train_step.micro_batch, error, callbacks)
        del train_step, state  # free their memory for the next attempt


def _loaders(job: JobSpec, splits: Splits, device: torch.device) -> dict[str, Loader]:
    """Return the loader of each split; only that of train shuffles and augments."""
    return {split: splits.loader(split, job, device, training=split == "train") for split in SPLITS}


def _rollback_event(error: Diverged, lr_backoffs: list[float], job: JobSpec) -> RolledBack:
    return RolledBack(
        reason=str(error),
        lr_factor=math.prod(lr_backoffs),
        rollback=len(lr_backoffs),
        rollbacks=job.failure.rollbacks,
    )


def init_or_restore(
    job: JobSpec,
    splits: Splits,
    device: torch.device,
    hooks: TrainingHooks,
    callbacks: Callback,
    teacher: Teacher | None,
) -> TrainingState:
    """Return the training state: restored from the last checkpoint, else initialized."""
    state = new_training_state(job, splits, device)
    if teacher:  # before `restore`, which refuses another teacher than the checkpoint's
        state.metadata["teacher"] = teacher.loaded.sha256
    if distributed.raise_on_any_rank(lambda: hooks.restore(state)):
        callbacks.on_event(Resumed(epoch=state.epoch, step=state.step, history=state.history))
        return state
    for warning in splits.warnings:
        callbacks.on_event(Warned(text=warning))
    if job.model.weights:
        loaded = distributed.raise_on_any_rank(lambda: load_initial_weights(state, job))
        callbacks.on_event(
            WeightsLoaded(
                source=job.model.weights, new_layers=loaded.new_layers, changes=loaded.changes
            )
        )
    return state


def _save(state: TrainingState, hooks: TrainingHooks, callbacks: Callback) -> None:
    """Save a checkpoint and send the event once it is written."""
    distributed.raise_on_any_rank(lambda: hooks.save(state))
    callbacks.on_event(
        CheckpointSaved(epoch=state.epoch, step=state.step, name=state.name, best=state.is_best)
    )


def run_epochs(
    train_step: TrainStep,
    splits: Splits,
    loaders: Mapping[str, Loader],
    hooks: TrainingHooks,
    callbacks: Callback,
    run_test: bool,
) -> TrainResult:
    """Train, validate and save each remaining epoch, then run the test."""
    state, job = train_step.state, train_step.job
    consensus, train_metrics = distributed.StopConsensus(), None
    while state.epoch < job.train.epochs and not out_of_patience(state, job):
        hooks.begin_epoch(state)
        train_step = apply_stage(train_step, job)
        train_metrics = train_epoch(train_step, loaders["train"], hooks, callbacks, consensus)
        row = _epoch_row(train_step, train_metrics, loaders)
        state.close_epoch(row)
        _save(state, hooks, callbacks)
        callbacks.on_event(EpochEnded(metrics=row))

    if state.epoch < job.train.epochs and job.train.patience:
        callbacks.on_event(StoppedEarly(patience=job.train.patience))
    if state.ema:  # the trained network is the average, also if the best cannot be restored
        copy_tensors(src=state.ema.tensors, dst=state.ema.parameters)
    if not run_test:
        return TrainResult(state, None, splits)
    tested = _test(train_step, job, splits, loaders, hooks)
    return replace(tested, last_epoch=train_metrics)


def _epoch_row(
    train_step: TrainStep, train_metrics: EpochMetrics, loaders: Mapping[str, Loader]
) -> Row:
    """Validate, and return the row of metrics.csv for the epoch just trained."""
    state, steps = train_step.state, len(loaders["train"])
    row: Row = {"epoch": state.epoch + 1, "step": (state.epoch + 1) * steps}
    row |= _row("train", train_metrics.training_values)
    row |= _validate(train_step, loaders["val"])
    rates = train_step.schedule(state.epoch * steps)  # of the first step of the epoch
    row |= {"lr": state.optimizer.lr * rates.factor}
    row |= {"images_per_s": train_metrics.count / train_metrics.seconds}
    seconds_before = state.history[-1]["time_s"] if state.history else 0.0
    return row | peak_memory(state) | {"time_s": seconds_before + train_metrics.seconds}


def _validate(train_step: TrainStep, loader: Loader) -> Row:
    """Return the validation metrics of the weights or their EMA; empty without held-out images."""
    if not loader.samples:
        return {}
    state, classes = train_step.state, len(train_step.state.metadata["classes"])
    with state.ema.in_place() if state.ema else nullcontext():
        metrics = evaluate(
            state.model, loader, train_step.job.train, classes, train_step.micro_batch
        )
    check_finite(metrics.mean_loss, state)
    return _row("val", metrics.values)


def _row(split: str, values: Mapping[str, float]) -> Row:
    return {f"{split}/{name}": value for name, value in values.items()}


def _test(
    train_step: TrainStep,
    job: JobSpec,
    splits: Splits,
    loaders: Mapping[str, Loader],
    hooks: TrainingHooks,
) -> TrainResult:
    """Test the best weights once, and keep their predictions for val and test."""
    state, predictions = train_step.state, {}
    distributed.raise_on_any_rank(lambda: hooks.restore_best(state))
    # The test comes last, because the metrics of the last split are returned.
    for split in ("val", "test") if loaders["val"].samples else ("test",):
        metrics, predicted = predict_split(
            state.model, loaders[split], job.train, len(splits.classes), train_step.micro_batch
        )
        if predicted:
            predictions[split] = predicted
    return TrainResult(state, metrics, splits, predictions)


def peak_memory(state: TrainingState) -> Row:
    """Return the peak memory of any worker's device since the last row; empty on CPUs."""
    device = next(state.model.parameters()).device
    if device.type == "cpu":
        return {}
    return {"memory_mib": distributed.all_reduce_max(peak_mib(device))}


def out_of_patience(state: TrainingState, job: JobSpec) -> bool:
    """Return whether validation has not improved for `train.patience` epochs."""
    epochs_since_best = state.epoch - (state.best or 0)
    return job.train.patience is not None and epochs_since_best >= job.train.patience


def train_epoch(
    train_step: TrainStep,
    loader: Loader,
    hooks: TrainingHooks,
    callbacks: Callback,
    consensus: distributed.StopConsensus,
) -> EpochMetrics:
    """Run the remaining steps of the epoch; return the metrics of the whole epoch.

    Raises Interrupted, on all workers and after saving, if a stop was requested.
    """
    state, save_interval = train_step.state, train_step.job.storage.every_steps
    models.begin_training(train_step.replica)
    steps, first_global_step = len(loader), state.epoch * len(loader)
    interval, last_sent = IntervalAccumulator(state), 0.0
    reader = LossReader(next(state.model.parameters()).device)
    timer = PassTimer(loader.device)
    for batch in timer.waiting(loader.epoch(state.epoch, state.step)):
        with timer.timing(batch.count):
            logits, loss = train_step(batch, first_global_step + state.step)
        interval.metrics.add(loss, logits, batch.labels, batch.count)
        state.step += 1

        if (now := time.monotonic()) - last_sent > PROGRESS_INTERVAL_S:
            last_sent = now
            recent_loss = reader.read(interval.metrics.recent_loss())
            callbacks.on_event(
                Progress(epoch=state.epoch + 1, step=state.step, steps=steps, loss=recent_loss)
            )
        consensus.vote(hooks.should_stop())
        if state.step == steps:
            # Decide before validation, which may take longer than the workers have left to stop.
            consensus.finish_vote()
        if consensus.stop or (save_interval and state.step % save_interval == 0):
            interval.sync_metrics(state)
            _save(state, hooks, callbacks)
        if consensus.stop:
            # A vote that is still pending when the workers exit could crash one of them.
            consensus.finish_vote()
            stopped = StoppedOnRequest(epoch=state.epoch, step=state.step)
            callbacks.on_event(stopped)
            raise Interrupted(stopped.message)
    interval.sync_metrics(state)
    return state.epoch_metrics.with_times(timer)
