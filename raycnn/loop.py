"""The training loop: plain torch. It never learns who started it, or on how many machines."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycnn import __version__, dist, models, noise, seeds
from raycnn.checkpoint import Row, State
from raycnn.data import Splits, open_splits
from raycnn.data.loader import Batch, Loader
from raycnn.device import KINDS
from raycnn.errors import Diverged, Interrupted
from raycnn.metrics import Seen, Tally
from raycnn.optim import OPTIMIZERS, SCHEDULES, Schedule
from raycnn.spec import JobSpec, Train

NOISE = 3  # what a seed is for: see LIMIT and VAL in data


class Watch(Protocol):
    """The run, as the loop knows it. Every worker calls every method, in the same order."""

    def restore(self, state: State) -> None:
        """Put the run's last checkpoint into the state, if it has one."""

    def step(self, state: State, steps: int) -> bool:
        """After each step of an epoch's `steps`: whether this worker was asked to stop."""

    def save(self, state: State) -> None:
        """Keep the state, whole."""

    def close_epoch(self, state: State) -> None:
        """The last row of the history is new, and saved."""

    def restore_best(self, state: State) -> None:
        """Put the best checkpoint's weights into the model."""


@dataclass(frozen=True)
class Outcome:
    """What a finished training came to."""

    state: State
    test: Seen
    """Of the best weights, on every test image once."""


def fit(job: JobSpec, device: torch.device, watch: Watch) -> Outcome:
    """Train on this worker's share of every batch, from the last checkpoint on; then test once."""
    splits = dist.together(lambda: open_splits(job))
    state = fresh_state(job, splits, device)
    dist.together(lambda: watch.restore(state))
    train, val, test = (
        splits.loader(split, job, device, training=split == "train")
        for split in ("train", "val", "test")
    )
    schedule = SCHEDULES.build(job.schedule, job.train.epochs * len(train))
    replica = dist.replicate(state.model, torch.zeros(1, *splits.shape, device=device))
    classes, ballot = len(splits.classes), dist.Ballot()

    while state.epoch < job.train.epochs:
        rates = schedule(state.epoch * len(train))
        seen = train_epoch(replica, state, train, schedule, job, watch, ballot)
        row: Row = {"epoch": state.epoch + 1, "step": (state.epoch + 1) * len(train)}
        row |= {"lr": state.optimizer.lr * rates.factor, "images_per_s": seen.count / seen.seconds}
        row |= {"train/loss": seen.mean_loss, "train/acc1": seen.acc1}
        if val.samples:
            held_out = evaluate(state.model, val, job.train, classes)
            _check_finite(held_out.mean_loss, state)
            row |= {"val/loss": held_out.mean_loss, "val/acc1": held_out.acc1}
            row |= {"val/acc5": held_out.acc5}
        before = state.history[-1]["time_s"] if state.history else 0.0
        state.close_epoch(row | {"time_s": before + seen.seconds})
        dist.together(lambda: watch.save(state))
        watch.close_epoch(state)

    dist.together(lambda: watch.restore_best(state))
    return Outcome(state, evaluate(state.model, test, job.train, classes))


def fresh_state(job: JobSpec, splits: Splits, device: torch.device) -> State:
    """First weights: the same on every worker, and for every launcher."""
    torch.manual_seed(job.seed)
    model = models.build(job.model, splits.shape, len(splits.classes))
    model.to(device).to(memory_format=KINDS[device.type].layout)
    optimizer = OPTIMIZERS.build(job.optimizer, model.named_parameters())
    return State(model, optimizer, about(job, splits))


def about(job: JobSpec, splits: Splits) -> dict[str, Any]:
    """What a checkpoint says of the job it belongs to: enough to use its weights alone."""
    return {
        "spec": job.tree(),
        "classes": list(splits.classes),
        "source_shape": list(splits.store.shape),
        "shape": list(splits.shape),
        "mean": splits.pipeline.mean,
        "std": splits.pipeline.std,
        "data": splits.store.fingerprint,
        "versions": {"raycnn": __version__, "torch": torch.__version__},
    }


def train_epoch(
    replica: nn.Module,
    state: State,
    loader: Loader,
    schedule: Schedule,
    job: JobSpec,
    watch: Watch,
    ballot: dist.Ballot,
) -> Seen:
    """The steps of the epoch that are still to do; returns what the whole epoch saw."""
    replica.train()
    steps, done_before = len(loader), state.epoch * len(loader)
    progress = Progress(state, len(state.about["classes"]))
    for batch in loader.epoch(state.epoch, state.step):
        number = seeds.number(job.seed, NOISE, done_before + state.step)
        noise.begin_step(number, batch.first, batch.total, batch.images.device)
        logits, loss = forward(replica, batch, job.train)
        # DDP averages over the workers, whose shares may differ: this makes it the batch's mean.
        (loss * (dist.world() / batch.total)).backward()
        if job.train.clip_norm:
            nn.utils.clip_grad_norm_(state.model.parameters(), job.train.clip_norm)
        state.optimizer.step(schedule(done_before + state.step))
        state.optimizer.zero_grad()
        progress.tally.add(loss, logits, batch.labels, batch.count)
        state.step += 1

        ballot.vote(watch.step(state, steps))
        every = job.storage.every_steps
        if state.step == steps:
            ballot.count()  # before validation, which may outlast the time there is left
        if ballot.stop or (every and state.step % every == 0):
            progress.bring_up(state)
            dist.together(lambda: watch.save(state))
        if ballot.stop:
            raise Interrupted(
                f"stopped as asked, and saved, after {state.epoch} epochs and {state.step} steps"
            )
    progress.bring_up(state)
    return state.seen


class Progress:
    """What the steps since the last look saw, brought into the state when it is looked at."""

    def __init__(self, state: State, classes: int):
        self.classes = classes
        self.tally, self.began, self.first = Tally(classes), time.perf_counter(), state.step

    def bring_up(self, state: State) -> None:
        """Raises Diverged, on all workers alike, when a loss or a weight is not finite."""
        seen = self.tally.over_workers(time.perf_counter() - self.began)
        if seen.bad_step is not None:
            raise _diverged(state, self.first + seen.bad_step + 1)
        dist.share_buffers(state.model)
        # The last update may have ruined weights that no loss was computed with yet.
        _check_finite(sum(p.detach().sum() for p in state.model.parameters()), state)
        state.seen = state.seen.plus(seen)
        self.tally, self.began, self.first = Tally(self.classes), time.perf_counter(), state.step


def _check_finite(value: float | Tensor, state: State) -> None:
    if not math.isfinite(value):
        raise _diverged(state, state.step)


def _diverged(state: State, step: int) -> Diverged:
    return Diverged(
        f"the loss is not finite at step {step} of epoch {state.epoch + 1}: "
        "lower optimizer.lr, set train.clip_norm, or warm up"
    )


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, settings: Train, classes: int) -> Seen:
    """Every image once, whatever the number of workers."""
    model.eval()
    began = time.perf_counter()
    tally = Tally(classes, evaluating=True)
    for batch in loader.epoch(0):
        if batch.count:
            logits, loss = forward(model, batch, settings)
            tally.add(loss, logits, batch.labels, batch.count)
    return tally.over_workers(time.perf_counter() - began)


def forward(model: nn.Module, batch: Batch, settings: Train) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the loss summed over the share."""
    kind = batch.images.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bf16"):
        logits = model(batch.images)
    loss = F.cross_entropy(
        logits.float(), batch.labels, reduction="sum", label_smoothing=settings.label_smoothing
    )
    return logits, loss
