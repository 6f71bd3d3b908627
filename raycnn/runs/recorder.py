"""Record a training run in its folder: checkpoints, events, metrics and results."""

import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raycnn import io
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.splits import Splits
from raycnn.errors import DataError, EnvironmentUnavailable, StorageUnavailable
from raycnn.runs.compatibility import (
    check_same_data,
    check_same_job,
    check_same_teacher,
    version_differences,
)
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import Channel, HeartbeatSender
from raycnn.runs.metrics_file import MetricsWriter
from raycnn.runs.rank_log import RankLog
from raycnn.runs.teacher import load_job_teacher
from raycnn.runs.tensorboard import TensorBoardWriter
from raycnn.runs.trackers import Tracker, trackers_of
from raycnn.runtime import distributed
from raycnn.training import checkpoint, checkpoint_folder
from raycnn.training.callbacks import (
    Autotuned,
    Callback,
    CallbackList,
    CheckpointSkipped,
    Decoding,
    Evaluated,
    Event,
    Progress,
    Warned,
)
from raycnn.training.checkpoint import TrainingState
from raycnn.training.distillation import Teacher
from raycnn.training.optim import build_optimizer

UPLOAD_POLL_S = 1.0  # seconds that the other ranks wait at once for an upload of rank 0

log = logging.getLogger("raycnn")


class Recorder:
    """The `TrainingHooks` that record a run. Only rank 0 writes, except for rank logs.

    `callbacks` receive every event, after those that write to the run folder.
    """

    def __init__(self, run: Run, channel: Channel, callbacks: Iterable[Callback] = ()):
        self.run, self.channel = run, channel
        self._log = RankLog(run.folder / "logs" / f"rank-{distributed.rank()}.log")
        recorders: list[Callback] = [HeartbeatSender(channel), self._log]
        self._trackers: list[Tracker | TensorBoardWriter] = []
        if distributed.is_rank_zero():
            self._trackers = trackers_of(run, run.job().trackers)
            metrics = MetricsWriter(run.folder / "metrics.csv")
            recorders += [EventWriter(run), SpecWriter(run), ProgressWriter(run), metrics]
            recorders += self._trackers
        self.callbacks = CallbackList([*recorders, *callbacks], distributed.rank())
        log.info(f"rank {distributed.rank()} of {distributed.world_size()}, process {os.getpid()}")

    def close(self) -> None:
        """Close the trackers and the log."""
        for tracker in self._trackers:
            tracker.close()
        self._log.close()

    def restore(self, state: TrainingState) -> bool:
        """Load the newest valid checkpoint into the state; return False if there is none.

        Raises SpecError or DataError if job or data differ from the checkpoint's.
        """
        self.wait_for_upload()
        path, problems = self.latest_checkpoint(state)
        if not path:
            return False
        for problem in problems:
            self.callbacks.on_event(CheckpointSkipped(fault=problem))
        saved = checkpoint_folder.read_state(path)
        check_same_job(saved, state.metadata["spec"])
        check_same_data(saved, state.metadata["data"])
        check_same_teacher(saved, state.metadata.get("teacher"))
        for difference in version_differences(saved, state.metadata["versions"]):
            self.callbacks.on_event(difference)
        # The stage that the checkpoint is in may have switched on what needs more state.
        job = job_from_tree(state.metadata["spec"]).after(saved["epoch"])
        state.optimizer = build_optimizer(job.optimizer, state.model.named_parameters())
        checkpoint.restore(state, path)
        if distributed.is_rank_zero():
            if checkpoint_folder.read_index(path.parent).get("last") != path.name:
                checkpoint_folder.set_last(path, state.is_best)
        return True

    @property
    def resume_hint(self) -> str:
        """How a message ends that training could not go on."""
        return f", and `{self.run.command('resume')}` continues from there"

    def latest_checkpoint(self, state: TrainingState) -> tuple[Path | None, list[str]]:
        """Return the checkpoint to continue from, or None, and what is wrong with newer ones."""
        return self.run.latest_checkpoint()

    def save(self, state: TrainingState) -> None:
        """Save a checkpoint, on rank 0.

        Raises StorageUnavailable if writing fails, or EnvironmentUnavailable if the previous upload
        has failed.
        """
        distributed.broadcast_from_rank_zero(lambda: self._write_checkpoint(state))
        # Only now, so that this checkpoint is safe here if the upload of the previous one failed.
        self.wait_for_upload()
        if distributed.is_rank_zero():
            self.run.flush()

    def _write_checkpoint(self, state: TrainingState) -> None:
        try:
            checkpoint.save_checkpoint(state, self.run.checkpoints)
        except OSError as error:
            raise StorageUnavailable(
                f"cannot save a checkpoint: {error}; the previous one is intact{self.resume_hint}"
            ) from None

    def restore_best(self, state: TrainingState) -> None:
        """Load the best checkpoint's weights; keep the current ones if it is damaged."""
        self.wait_for_upload()
        try:
            checkpoint.load_weights(state.model, self.run.weights("best"))
        except DataError as error:
            text = f"testing the last weights, because the best cannot be read: {error}"
            self.callbacks.on_event(Warned(text=text))
            state.best = state.epoch

    def load_teacher(self, job: JobSpec, splits: Splits, device: torch.device) -> Teacher:
        """Return the teacher of a job with `train.distillation`."""
        teacher = load_job_teacher(job, splits, device)
        assert teacher
        return teacher

    def wait_for_upload(self) -> None:
        """Wait until workers on other machines can download every checkpoint."""
        if distributed.world_size() > 1:
            # In parts, since workers.timeout_s limits how long one rank waits for another; the
            # upload itself ends after storage.timeout_s without a connection.
            wait = partial(self.run.wait_flushed, UPLOAD_POLL_S)
            while not distributed.broadcast_from_rank_zero(wait):
                pass

    def begin_epoch(self, state: TrainingState) -> None:
        """Do nothing: a run, unlike a trial of a search, never ends before an epoch."""

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop."""
        return self.channel.should_stop()

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result of the run. Raises EnvironmentUnavailable if writing fails."""
        if distributed.is_rank_zero():
            try:
                self.run.write_result(result)
                self.run.flush()
            except OSError as error:
                raise EnvironmentUnavailable(
                    f"cannot write the result: {error}; `raycnn resume` tests again"
                ) from None
        numbers = {k: v for k, v in result["test"].items() if isinstance(v, int | float)}
        self.callbacks.on_event(Evaluated(metrics=numbers))


class EventWriter:
    """A callback that appends all but transient events to events.jsonl."""

    def __init__(self, run: Run):
        self.run = run

    def on_event(self, event: Event) -> None:
        if not event.transient:
            self.run.add_event(event)


class SpecWriter:
    """A callback that records measured settings in job.yaml, for a resumed run to repeat."""

    def __init__(self, run: Run):
        self.run = run

    def on_event(self, event: Event) -> None:
        if isinstance(event, Autotuned):
            self.run.write_job(self.run.job().change(event.settings))


class ProgressWriter:
    """A callback that writes the current epoch and step to progress.json."""

    def __init__(self, run: Run):
        self.run = run

    def on_event(self, event: Event) -> None:
        match event:
            case Progress():
                progress = {"epoch": event.epoch, "step": event.step, "steps": event.steps}
            case Decoding():
                progress = {"epoch": 0, "step": event.done, "steps": event.total}
            case _:
                return
        io.write_json(self.run.folder / "progress.json", progress)
