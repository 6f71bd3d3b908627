"""The training loop, in plain torch. It does not depend on the launcher, nor on Ray."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raycnn import __version__, models
from raycnn.config.components import SCHEDULES
from raycnn.config.schema import JobSpec, Train
from raycnn.data.label_arrays import class_counts, is_multi_label
from raycnn.data.loader import Loader
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import Diverged, Interrupted, OutOfMemory, SpecError
from raycnn.models.flops import count_flops
from raycnn.runtime import distributed
from raycnn.runtime.deterministic import deterministic
from raycnn.runtime.device import DEVICE_KINDS, layout, peak_mib
from raycnn.runtime.timer import PassTimer
from raycnn.training import pretrained
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
    TrainingStarted,
    Warned,
    WeightsLoaded,
)
from raycnn.training.checkpoint import Row, TrainingState
from raycnn.training.distillation import Teacher, agree_on_teacher
from raycnn.training.ema import EMA, copy
from raycnn.training.loss_scale import LossScale
from raycnn.training.metrics import (
    EpochMetrics,
    LossReader,
    metric_accumulator,
    small_validation_warning,
)
from raycnn.training.optim import build_optimizer, scale_lr
from raycnn.training.predictions import PredictionCollector, SplitPredictions
from raycnn.training.step import (
    TrainStep,
    class_weights,
    find_micro_batch_size,
    forward,
    halve_micro_batch,
    micro_batch_size,
    positive_weights,
    split_micro_batches,
    try_step,
)

PROGRESS_INTERVAL_S = 0.25  # seconds between progress events


class Control(Protocol):
    """The interface between the loop and its caller.

    All workers call its methods in the same order.
    """

    def restore(self, state: TrainingState) -> bool:
        """Load the run's last checkpoint into the state; return False when there is none."""

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
    """The outcome of a completed training."""

    state: TrainingState
    test: EpochMetrics | None
    """Test metrics of the best weights; None without a test."""
    splits: Splits
    predictions: dict[str, SplitPredictions] = field(default_factory=dict)
    """Predictions of the best weights for val and test; on rank 0 only, after a test."""


def fit(
    job: JobSpec,
    device: torch.device,
    control: Control,
    callbacks: Callback,
    test_once: bool = True,
) -> TrainResult:
    """Train on this worker's share of every batch, from the last checkpoint on, then test.

    After a loss that is not finite, training restarts from the last checkpoint, at most
    `failure.rollbacks` times; after running out of device memory it restarts with half the
    micro-batch. Raises Diverged after the last rollback, Interrupted on a stop request, OutOfMemory
    where several workers must restart, EnvironmentUnavailable when one image does not fit, and
    SpecError where `train.deterministic` cannot be met.
    """
    with deterministic(job.train.deterministic):
        return _fit(job, device, control, callbacks, test_once)


def _fit(
    job: JobSpec, device: torch.device, control: Control, callbacks: Callback, test_once: bool
) -> TrainResult:
    def decoding(done: int, total: int) -> None:
        callbacks.on_event(Decoding(done=done, total=total))

    def warn(text: str) -> None:
        callbacks.on_event(Warned(text=text))

    splits = distributed.raise_on_any_rank(lambda: open_splits(job, decoding, warn))
    if job.train.patience and not len(splits.labels("val")):
        raise SpecError("needs images that are held out: data.val is 0", "train.patience")
    steps = job.train.epochs * math.ceil(len(splits.labels("train")) / job.train.batch_size)
    new_state = partial(fresh_state, splits=splits, device=device)
    job = autotune(job, steps, splits.shape, device, new_state, callbacks)
    teacher = None
    if job.train.distillation:
        teacher = agree_on_teacher(lambda: control.load_teacher(job, splits, device))
        callbacks.on_event(teacher.loaded)
    lr_backoffs: list[float] = []
    while True:
        state = init_or_restore(job, splits, device, control, callbacks, teacher)
        state.lr_backoffs = max(state.lr_backoffs, lr_backoffs, key=len)
        loaders = _loaders(job, splits, device)
        step = prepare(state, splits, steps, job, callbacks, teacher)
        if not lr_backoffs:
            callbacks.on_event(_started_event(job, state, splits, device))
            if text := small_validation_warning(len(splits.labels("val")), splits.multi_label):
                callbacks.on_event(Warned(text=text))
        try:
            return run_epochs(step, splits, loaders, control, callbacks, test_once)
        except Diverged as error:
            lr_backoffs = [*state.lr_backoffs, job.failure.rollback_lr]
            if len(lr_backoffs) > job.failure.rollbacks:
                raise
            callbacks.on_event(_rollback_event(error, lr_backoffs, job))
        except torch.OutOfMemoryError:
            job = _with_half_the_micro_batch(job, step.micro_batch, callbacks)
        del step, state  # free their memory for the next attempt


def _loaders(job: JobSpec, splits: Splits, device: torch.device) -> dict[str, Loader]:
    """Return the loader of each split; only that of train shuffles and augments."""
    return {
        split: splits.loader(split, job, device, training=split == "train")
        for split in ("train", "val", "test")
    }


def _rollback_event(error: Diverged, lr_backoffs: list[float], job: JobSpec) -> RolledBack:
    return RolledBack(
        reason=str(error),
        lr_factor=math.prod(lr_backoffs),
        rollback=len(lr_backoffs),
        rollbacks=job.failure.rollbacks,
    )


def _with_half_the_micro_batch(job: JobSpec, micro_batch: int, callbacks: Callback) -> JobSpec:
    """Return the job with half the micro-batch. Raises OutOfMemory with several workers."""
    size = halve_micro_batch(micro_batch, callbacks)
    if distributed.world_size() > 1:
        # The other workers wait in the middle of a step, so all must restart.
        text = f"rank {distributed.rank()} was out of memory on its device"
        raise OutOfMemory(text, size) from None
    return job.change({"train.micro_batch": size})


def _started_event(
    job: JobSpec, state: TrainingState, splits: Splits, device: torch.device
) -> TrainingStarted:
    """Return the event that describes the training about to start."""
    names = DEVICE_KINDS[device.type].names()
    return TrainingStarted(
        model=job.model.name,
        parameters=models.count_parameters(state.model),
        images={split: len(splits.labels(split)) for split in ("train", "val", "test")},
        device=names[device.index or 0] if names else device.type,
        workers=distributed.world_size(),
        flops=count_flops(state.model, splits.shape),
    )


def init_or_restore(
    job: JobSpec,
    splits: Splits,
    device: torch.device,
    control: Control,
    callbacks: Callback,
    teacher: Teacher | None,
) -> TrainingState:
    """Return the training state: restored from the last checkpoint, else initialized."""
    state = fresh_state(job, splits, device)
    if teacher:
        state.metadata["teacher"] = teacher.loaded.sha256
    if distributed.raise_on_any_rank(lambda: control.restore(state)):
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


def _save(state: TrainingState, control: Control, callbacks: Callback) -> None:
    """Save a checkpoint and send the event once it is written."""
    distributed.raise_on_any_rank(lambda: control.save(state))
    callbacks.on_event(
        CheckpointSaved(epoch=state.epoch, step=state.step, name=state.name, best=state.is_best)
    )


def run_epochs(
    step: TrainStep,
    splits: Splits,
    loaders: Mapping[str, Loader],
    control: Control,
    callbacks: Callback,
    test_once: bool,
) -> TrainResult:
    """Train, validate and save each remaining epoch, then run the test."""
    state, job = step.state, step.job
    train, val = loaders["train"], loaders["val"]
    consensus = distributed.StopConsensus()
    while state.epoch < job.train.epochs and not out_of_patience(state, job):
        control.begin_epoch(state)
        step = apply_stage(step, job)
        seen = train_epoch(step, train, control, callbacks, consensus)
        row: Row = {"epoch": state.epoch + 1, "step": (state.epoch + 1) * len(train)}
        row |= _row("train", seen.training_values)
        row |= _validate(step, val)
        rates = step.schedule(state.epoch * len(train))
        row |= {"lr": state.optimizer.lr * rates.factor, "images_per_s": seen.count / seen.seconds}
        before = state.history[-1]["time_s"] if state.history else 0.0
        row |= peak_memory(state) | {"time_s": before + seen.seconds}
        state.close_epoch(row)
        _save(state, control, callbacks)
        callbacks.on_event(EpochEnded(metrics=row))

    if state.epoch < job.train.epochs and job.train.patience:
        callbacks.on_event(StoppedEarly(patience=job.train.patience))
    if state.average:
        copy(state.average.tensors, state.average.named)
    if not test_once:
        return TrainResult(state, None, splits)
    return _test(step, job, splits, loaders, control)


def _validate(step: TrainStep, loader: Loader) -> Row:
    """Return the validation metrics of the weights or their EMA; empty without held-out images."""
    if not loader.samples:
        return {}
    state, classes = step.state, len(step.state.metadata["classes"])
    with state.average.in_place() if state.average else nullcontext():
        metrics = evaluate(state.model, loader, step.job.train, classes, step.micro_batch)
    _check_finite(metrics.mean_loss, state)
    return _row("val", metrics.values)


def _row(split: str, values: Mapping[str, float]) -> Row:
    return {f"{split}/{name}": value for name, value in values.items()}


def _test(
    step: TrainStep,
    job: JobSpec,
    splits: Splits,
    loaders: Mapping[str, Loader],
    control: Control,
) -> TrainResult:
    """Test the best weights once, and keep their predictions for val and test."""
    state, predictions = step.state, {}
    distributed.raise_on_any_rank(lambda: control.restore_best(state))
    for split in ("val", "test") if loaders["val"].samples else ("test",):
        metrics, predicted = predict_split(
            state.model, loaders[split], job.train, len(splits.classes), step.micro_batch
        )
        if predicted:
            predictions[split] = predicted
    return TrainResult(state, metrics, splits, predictions)


def fresh_state(job: JobSpec, splits: Splits, device: torch.device) -> TrainingState:
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
        state.average = EMA(job.train.ema, optimizer.parameters)
    return state


def load_initial_weights(state: TrainingState, job: JobSpec) -> pretrained.Adapted:
    """Load the weights that the job names into a new state; return which were loaded."""
    loaded = pretrained.load_pretrained(state.model, job.model)
    if state.average:
        copy(state.average.named, state.average.tensors)
    return loaded


def prepare(
    state: TrainingState,
    splits: Splits,
    steps: int,
    job: JobSpec,
    callbacks: Callback,
    teacher: Teacher | None,
) -> TrainStep:
    """Return the step of a run of `steps` steps, with the largest micro-batch that fits.

    Raises EnvironmentUnavailable when a single image does not fit into device memory.
    """
    device = next(state.model.parameters()).device
    replica = distributed.replicate(state.model, torch.zeros(1, *splits.shape, device=device))
    if job.train.compile is True:
        state.model.compile()
    step = TrainStep(
        replica=replica, state=state, job=job,
        schedule=scale_lr(SCHEDULES.build(job.schedule, steps), math.prod(state.lr_backoffs)),
        micro_batch=micro_batch_size(job.train),
        class_weights=loss_weights(job, splits, device), teacher=teacher,
    )  # fmt: skip
    if device.type == "cpu":
        return step
    attempt = partial(try_step, step, splits.shape)
    return replace(step, micro_batch=find_micro_batch_size(attempt, step.micro_batch, callbacks))


def loss_weights(job: JobSpec, splits: Splits, device: torch.device) -> Tensor | None:
    """Return the weight (K,) of each class in the loss; None where all are equal."""
    labels = splits.labels("train")
    counts = class_counts(labels, len(splits.classes))
    if splits.multi_label:
        weights = positive_weights(job.train.class_weights, counts, len(labels))
    else:
        weights = class_weights(job.train.class_weights, counts)
    return None if weights is None else weights.to(device)


def apply_stage(step: TrainStep, job: JobSpec) -> TrainStep:
    """Return the step with the settings of the current epoch; the optimizer keeps its state."""
    if not job.stages:
        return step
    state, now = step.state, job.after(step.state.epoch)
    optimizer = build_optimizer(now.optimizer, state.model.named_parameters())
    optimizer.state = state.optimizer.state
    state.optimizer = optimizer
    return replace(step, job=now)


def peak_memory(state: TrainingState) -> Row:
    """Return the peak memory of any worker's device since the last row; empty on CPUs."""
    device = next(state.model.parameters()).device
    if device.type == "cpu":
        return {}
    return {"memory_mib": distributed.all_reduce_max(peak_mib(device))}


def out_of_patience(state: TrainingState, job: JobSpec) -> bool:
    """Return whether validation has not improved for `train.patience` epochs."""
    since = state.epoch - (state.best or 0)
    return job.train.patience is not None and since >= job.train.patience


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


def train_epoch(
    step: TrainStep,
    loader: Loader,
    control: Control,
    callbacks: Callback,
    consensus: distributed.StopConsensus,
) -> EpochMetrics:
    """Run the remaining steps of the epoch; return the metrics of the whole epoch.

    Raises Interrupted, on all workers and after saving, when a stop was requested.
    """
    state, every = step.state, step.job.storage.every_steps
    models.begin_training(step.replica)
    steps, done_before = len(loader), state.epoch * len(loader)
    meter, last_sent = EpochMeter(state), 0.0
    reader = LossReader(next(state.model.parameters()).device)
    for batch in loader.epoch(state.epoch, state.step):
        logits, loss = step(batch, done_before + state.step)
        meter.metrics.add(loss, logits, batch.labels, batch.count)
        state.step += 1

        if (now := time.monotonic()) - last_sent > PROGRESS_INTERVAL_S:
            last_sent = now
            seen = reader.read(meter.metrics.recent_loss())
            callbacks.on_event(
                Progress(epoch=state.epoch + 1, step=state.step, steps=steps, loss=seen)
            )
        consensus.vote(control.should_stop())
        if state.step == steps:
            consensus.count()  # before validation, which may exceed the time left to stop
        if consensus.stop or (every and state.step % every == 0):
            meter.sync_metrics(state)
            _save(state, control, callbacks)
        if consensus.stop:
            consensus.count()  # a vote still pending when workers exit could crash one of them
            stopped = StoppedOnRequest(epoch=state.epoch, step=state.step)
            callbacks.on_event(stopped)
            raise Interrupted(stopped.message)
    meter.sync_metrics(state)
    return state.epoch_metrics


class EpochMeter:
    """Measures the steps since the last synchronization, for the metrics in the state."""

    def __init__(self, state: TrainingState):
        self._begin(state)

    def sync_metrics(self, state: TrainingState) -> None:
        """Reduce the metrics over all workers and add them to the state.

        Raises Diverged, on all workers, when a loss or a weight is not finite.
        """
        seen = self.metrics.all_reduce(time.perf_counter() - self.start_time)
        if seen.bad_step is not None:
            raise _divergence_error(state, self.first + seen.bad_step + 1)
        distributed.broadcast_buffers(state.model)
        # The last update may have made weights non-finite that no loss has used yet.
        _check_finite(sum(p.detach().sum() for p in state.model.parameters()), state)
        state.epoch_metrics = state.epoch_metrics.plus(seen)
        self._begin(state)

    def _begin(self, state: TrainingState) -> None:
        classes, multi_label = len(state.metadata["classes"]), state.metadata["multi_label"]
        self.metrics = metric_accumulator(classes, multi_label)
        self.start_time, self.first = time.perf_counter(), state.step


def _check_finite(value: float | Tensor, state: TrainingState) -> None:
    if not math.isfinite(value):
        raise _divergence_error(state, state.step)


def _divergence_error(state: TrainingState, step: int) -> Diverged:
    return Diverged(
        f"the loss is not finite at step {step} of epoch {state.epoch + 1}: "
        "lower optimizer.lr, set train.clip_norm, or warm up"
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    settings: Train,
    classes: int,
    micro_batch: int,
    collector: PredictionCollector | None = None,
) -> EpochMetrics:
    """Return the metrics over all workers, evaluating every image of the loader once.

    At most `micro_batch` images are in a forward pass. `collector` receives all logits.
    """
    model.eval()
    start_time = time.perf_counter()
    tally = metric_accumulator(classes, is_multi_label(loader.labels), evaluating=True)
    timer = PassTimer(loader.device)
    for step, batch in enumerate(loader.epoch(0)):
        for part in split_micro_batches(batch, micro_batch) if batch.count else ():
            with timer.timing(part.count):
                logits, loss = forward(model, part, settings)
            tally.add(loss, logits, part.labels, part.count)
            if collector:
                collector.add(step * loader.batch_size + part.first, logits)
    metrics = tally.all_reduce(time.perf_counter() - start_time)
    return replace(metrics, ms_per_image=timer.ms_per_image())


def predict_split(
    model: nn.Module, loader: Loader, settings: Train, classes: int, micro_batch: int
) -> tuple[EpochMetrics, SplitPredictions | None]:
    """Return the metrics of a split and, on rank 0, the prediction for each of its images."""
    collector = PredictionCollector(loader, classes)
    seen = evaluate(model, loader, settings, classes, micro_batch, collector)
    return seen, collector.gather(loader.device)
