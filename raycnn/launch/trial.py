"""Train the trials of a search: the scheduler decides after each epoch, and nothing is tested."""

import logging
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import Tree
from raycnn.errors import (
    ClusterError,
    Interrupted,
    RaycnnError,
    StorageUnavailable,
)
from raycnn.filesystem import full_disk_errors
from raycnn.launch.signals import Stop
from raycnn.models import count_parameters
from raycnn.runs.compatibility import has_same_lineage
from raycnn.runs.heartbeat_channel import Channel, FolderChannel
from raycnn.runs.recorder import Recorder
from raycnn.runtime import device, distributed
from raycnn.search.folder import Search, SearchView, Trial
from raycnn.search.queue import TrialQueue
from raycnn.search.schedulers import Pbt
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import CheckpointSkipped, Failed, TrialStopped
from raycnn.training.checkpoint import TrainingState
from raycnn.training.loop import fit

log = logging.getLogger("raycnn")

TrialOutcome = dict[str, Any]
"""The `state` of an ended trial, and its `reason` unless it is done; {} if it has not ended."""


class _Stopped(Exception):
    """Raised when the scheduler stops a trial."""


class TrialRecorder(Recorder):
    """Records a trial, and stops it when the scheduler of the search decides so."""

    def __init__(self, search: Search, trial: Trial, channel: Channel):
        super().__init__(trial.run, channel)
        self.search, self.trial = search, trial
        self.pause_epoch = search.pause_epoch(trial)

    resume_hint = ""  # the search has one

    def latest_checkpoint(self, state: TrainingState) -> tuple[Path | None, list[str]]:
        """Return the newest valid checkpoint; of a population, only one that fits the job.

        After a kill, or an interrupted upload, a member may have the copy's job but not all of its
        checkpoints. The job repeats the whole lineage, so it is trained from the start then.
        """
        if not isinstance(self.search.scheduler, Pbt):
            return super().latest_checkpoint(state)
        unusable = partial(_unusable, spec=state.metadata["spec"])
        path, problems = checkpoint_folder.newest_usable(self.run.all_checkpoints(), unusable)
        if path:
            return path, problems
        for problem in problems:
            self.callbacks.on_event(CheckpointSkipped(fault=problem))
        if problems and distributed.is_rank_zero():
            checkpoint_folder.delete_all(self.run.checkpoints)
        return None, []

    def begin_epoch(self, state: TrainingState) -> None:
        """Raise _Stopped or Interrupted, on every worker, when a trial must not continue."""
        if distributed.is_rank_zero() and "parameters" not in self.trial.info:
            self.trial.update(
                parameters=count_parameters(state.model),
                val_images=state.metadata["images"]["val"],
            )
        if state.epoch and not state.step:
            if reason := distributed.broadcast_from_rank_zero(self._stop_reason):
                raise _Stopped(reason)
        if state.epoch == self.pause_epoch < self.trial.info["epochs"]:
            raise Interrupted(f"paused for the other trials after {state.epoch} epochs")

    def _stop_reason(self) -> str | None:
        curve = self.trial.curve(self.search.spec.tune)
        reason = self.search.scheduler(curve, lambda: self.search.siblings(self.trial))
        return reason and f"after {len(curve.values)} of {curve.epochs} epochs: {reason}"


def _unusable(checkpoint: Path, spec: Tree) -> str | None:
    """Return why a checkpoint is damaged or not of a spec's lineage; None if it can be used."""
    if problem := checkpoint_folder.verify_checkpoint(checkpoint):
        return problem
    if has_same_lineage(checkpoint_folder.read_state(checkpoint), spec):
        return None
    return f"{checkpoint} is older than the copy that was made of another trial"


def run_trial(trial: Trial, work: Callable[[], TrialOutcome]) -> None:
    """Train a trial from its last checkpoint by calling `work`, and record how it ended.

    An error of the trial is recorded as the reason of its failure and never ends the search. Raises
    ClusterError for an error of the cluster and StorageUnavailable for a full disk, and the trial
    has not ended then; and EnvironmentUnavailable if another process trains it.
    """
    began, before = time.time(), trial.info.get("wall_s", 0.0)
    outcome: TrialOutcome = {}
    with trial.lock(), full_disk_errors(trial.run.folder):
        try:
            outcome = _outcome(trial, work)
        finally:
            trial.update(**outcome, wall_s=before + time.time() - began)
    if outcome:
        with suppress(OSError):
            checkpoint_folder.prune(trial.run.checkpoints)
            trial.run.flush()
    if reason := outcome.get("reason"):
        with suppress(OSError):
            failed = outcome["state"] == "failed"
            event = Failed(error=reason, kind="Trial") if failed else TrialStopped(reason=reason)
            trial.run.add_event(event)


def _outcome(trial: Trial, work: Callable[[], TrialOutcome]) -> TrialOutcome:
    """Train a trial and return how it ended, or that it failed.

    Raises ClusterError, or StorageUnavailable.
    """
    try:
        with full_disk_errors(trial.run.folder):
            return work()
    except Interrupted:
        return {}
    except (ClusterError, StorageUnavailable):
        raise
    except RaycnnError as error:
        return {"state": "failed", "reason": str(error)}
    except Exception as error:
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}


def fit_trial_alone(
    search: Search,
    trial: Trial,
    device: torch.device,
    deadline: float | None,
    stop_requested: Callable[[], bool] = lambda: False,
    root: str | None = None,
) -> TrialOutcome:
    """Train a trial as its only worker; return how it ended.

    On request, or past the `deadline` (seconds since 1970), it saves and returns {}. A `root`
    replaces that of the data, which may be relative to the working folder of another process.
    """
    job = trial.run.job()
    if root:
        job = job.change({"data.root": root})

    def stop() -> bool:
        return stop_requested() or is_past(deadline)

    with closing(FolderChannel(trial.run, job.workers.timeout_s, stop)) as channel:
        return fit_trial(search, trial, job, device, channel)


def is_past(deadline: float | None) -> bool:
    """Return whether a deadline, in seconds since 1970, is over."""
    return deadline is not None and time.time() > deadline


def fit_trial(
    search: Search, trial: Trial, job: JobSpec, device: torch.device, channel: Channel
) -> TrialOutcome:
    """Train a trial, with its `job`, as one of its workers; return how it ended.

    When the channel requests a stop, it saves and returns {}.
    """
    recorder = TrialRecorder(search, trial, channel)
    try:
        fit(job, device, recorder, recorder.callbacks, run_test=False)
        return {"state": "done"}
    except _Stopped as stopped:
        return {"state": "stopped", "reason": str(stopped)}
    except Interrupted as error:
        log.info(str(error))
        return {}
    except Exception as error:
        channel.failed(error)
        log.error("failed", exc_info=error)
        raise
    finally:
        recorder.close()


def run_here(search: Search, view: SearchView) -> None:
    """Train all trials in this process, one after another, without Ray.

    Stops on a signal, past the time budget, or when uploads have failed, with unfinished trials
    saved. Raises Interrupted for a signal, and StorageUnavailable if the disk is full.
    """
    budget, (pool, *_) = search.spec.tune.time_budget_s, search.spec.tune.pools
    kind = device.find(pool.device)
    pool, chosen = pool.model_copy(update={"device": kind.name}), kind.select(0, pool.cpus)
    deadline = time.time() + budget if budget else None
    queue = TrialQueue(search)
    stop = Stop(busy=lambda: bool(queue.running))

    def should_stop() -> bool:
        return stop() or search.upload_failed

    with stop.listening():
        while queue.waiting and not should_stop() and not is_past(deadline):
            trial = queue.take(pool)
            view.show(search, [trial.id])
            work = partial(fit_trial_alone, search, trial, chosen, deadline, should_stop)
            run_trial(trial, work)
            queue.complete(trial)
            view.show(search, [])
    if stop.requested:
        raise Interrupted("stopped on request")
