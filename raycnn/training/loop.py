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
from raycnn.data.sources.base import SPLITS
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import Diverged, Interrupted, SpecError
from raycnn.models.flops import count_flops
from raycnn.runtime import distributed
from raycnn.runtime.deterministic import deterministic
from raycnn.runtime.device import DEVICE_KINDS, is_out_of_memory, layout, peak_mib
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
from raycnn.training.compilation import compile_in_place
from raycnn.training.distillation import Teacher, agree_on_teacher
from raycnn.training.ema import EMA, copy_tensors
from raycnn.training.loss_scale import LossScale
from raycnn.training.metrics import EpochMetrics, LossReader, build_metric_accumulator
from raycnn.training.micro_batch import (
    halve_micro_batch,
    micro_batch_size,
    with_fitting_micro_batch,
)
from raycnn.training.optim import build_optimizer
from raycnn.training.predictions import PredictionAccumulator, SplitPredictions
from raycnn.training.schedules import scale_lr
from raycnn.training.step import (
    TrainStep,
    class_weights,
    forward,
    positive_weights,
    split_micro_batches,
)
from raycnn.training.tta import with_tta
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
            callbacks.on_event(_started_event(job, state, splits, device))
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


def _started_event(
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
    train, val = loaders["train"], loaders["val"]
    consensus, train_metrics = distributed.StopConsensus(), None
    while state.epoch < job.train.epochs and not out_of_patience(state, job):
        hooks.begin_epoch(state)
        train_step = apply_stage(train_step, job)
        train_metrics = train_epoch(train_step, train, hooks, callbacks, consensus)
        row: Row = {"epoch": state.epoch + 1, "step": (state.epoch + 1) * len(train)}
        row |= _row("train", train_metrics.training_values)
        row |= _validate(train_step, val)
        rates = train_step.schedule(state.epoch * len(train))  # of the first step of the epoch
        row |= {"lr": state.optimizer.lr * rates.factor}
        row |= {"images_per_s": train_metrics.count / train_metrics.seconds}
        seconds_before = state.history[-1]["time_s"] if state.history else 0.0
        row |= peak_memory(state) | {"time_s": seconds_before + train_metrics.seconds}
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


def _validate(train_step: TrainStep, loader: Loader) -> Row:
    """Return the validation metrics of the weights or their EMA; empty without held-out images."""
    if not loader.samples:
        return {}
    state, classes = train_step.state, len(train_step.state.metadata["classes"])
    with state.ema.in_place() if state.ema else nullcontext():
        metrics = evaluate(
            state.model, loader, train_step.job.train, classes, train_step.micro_batch
        )
    _check_finite(metrics.mean_loss, state)
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
    return _timed(state.epoch_metrics, timer)


def _timed(metrics: EpochMetrics, timer: PassTimer) -> EpochMetrics:
    return replace(
        metrics, ms_per_image=timer.ms_per_image(), data_ms_per_image=timer.data_ms_per_image()
    )


class IntervalAccumulator:
    """An accumulator of the metrics of the steps since the last synchronization of workers."""

    def __init__(self, state: TrainingState):
        self._reset(state)

    def sync_metrics(self, state: TrainingState) -> None:
        """Reduce the metrics over all workers and add them to the state.

        Raises Diverged, on all workers, if a loss or a weight is not finite.
        """
        interval_metrics = self.metrics.all_reduce(time.perf_counter() - self.start_time)
        if interval_metrics.bad_step is not None:
            raise _divergence_error(state, self.first_step + interval_metrics.bad_step + 1)
        # Batch norm has gathered statistics of each rank's own images: all go on with rank 0's.
        distributed.broadcast_buffers(state.model)
        # The last update may have made weights non-finite that no loss has used yet.
        _check_finite(sum(p.detach().sum() for p in state.model.parameters()), state)
        state.epoch_metrics = state.epoch_metrics.plus(interval_metrics)
        self._reset(state)

    def _reset(self, state: TrainingState) -> None:
        classes, multi_label = len(state.metadata["classes"]), state.metadata["multi_label"]
        self.metrics = build_metric_accumulator(classes, multi_label)
        self.start_time, self.first_step = time.perf_counter(), state.step


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
    predictions: PredictionAccumulator | None = None,
) -> EpochMetrics:
    """Return the metrics over all workers, evaluating every image of the loader once.

    The loss is the plain cross-entropy: with the label smoothing of training it could not be
    compared between the stages of a job, or between jobs. A forward pass has at most `micro_batch`
    images. The test-time augmentation of the settings applies. All logits are added to
    `predictions`.
    """
    settings = settings.model_copy(update={"label_smoothing": 0.0})
    model = with_tta(model.eval(), settings.tta)
    start_time = time.perf_counter()
    multi_label = is_multi_label(loader.labels)
    accumulator = build_metric_accumulator(classes, multi_label, evaluating=True)
    timer = PassTimer(loader.device)
    batches = timer.waiting(loader.epoch(0))  # unshuffled: every epoch is the same
    for batch_index, batch in enumerate(batches):
        # A worker without a share of the batch has one image that does not count.
        for part in split_micro_batches(batch, micro_batch) if batch.count else ():
            with timer.timing(part.count):
                logits, loss = forward(model, part, settings)
            accumulator.add(loss, logits, part.labels, part.count)
            if predictions:
                predictions.add(batch_index * loader.batch_size + part.first, logits)
    metrics = accumulator.all_reduce(time.perf_counter() - start_time)
    return _timed(metrics, timer)


def predict_split(
    model: nn.Module, loader: Loader, settings: Train, classes: int, micro_batch: int
) -> tuple[EpochMetrics, SplitPredictions | None]:
    """Return the metrics of a split and, on rank 0, the prediction for each of its images."""
    predictions = PredictionAccumulator(loader, classes)
    metrics = evaluate(model, loader, settings, classes, micro_batch, predictions)
    return metrics, predictions.gather(loader.device)
