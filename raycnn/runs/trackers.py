"""Experiment trackers as callbacks, each an optional package: wandb, MLflow and trackio.

Each runs in its own thread, so that a slow or unreachable server delays no step. A tracker that
fails is logged once and then disabled. The trackers' own environment variables decide where they
write (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, ...).
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from raycnn.config.changes import flatten
from raycnn.errors import EnvironmentUnavailable
from raycnn.io import read_json, write_json
from raycnn.runs.directory import Run
from raycnn.runs.tensorboard import TensorBoardWriter
from raycnn.training.callbacks import (
    EpochEnded,
    Evaluated,
    Event,
    Failed,
    StoppedOnRequest,
)

IDS = "trackers.json"  # ids of the trackers' runs, in the run folder: a resumed run continues them
CLOSE_S = 60  # maximum seconds for a tracker to write its remaining events at the end
VALUE_LENGTH = 500  # maximum number of characters of a parameter on old MLflow servers

log = logging.getLogger("raycnn")


class Tracker:
    """A callback that passes events to a tracker's client in a background thread."""

    name: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, run: Run):
        self.run = run
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)

    def on_event(self, event: Event) -> None:
        """Queue an event; the first one starts the tracker's thread."""
        if event.transient:
            return
        self._events.put(event)
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Wait until all events are written, for at most CLOSE_S seconds."""
        if self._thread.ident is None:
            return
        self._events.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning(f"{self.name}: not all events are written after {CLOSE_S} s")

    def _work(self) -> None:
        state = "finished"
        try:
            self.start()
            while event := self._events.get():
                if isinstance(event, EpochEnded):
                    self.log_metrics(event.metrics, int(event.metrics["epoch"]))
                elif isinstance(event, Evaluated):
                    self.log_test({f"test/{key}": value for key, value in event.metrics.items()})
                elif isinstance(event, Failed | StoppedOnRequest):
                    state = "failed" if isinstance(event, Failed) else "stopped"
            self.finish(state)
        except Exception as error:  # a client, or its server, may raise anything
            log.warning(f"{self.name} is off: {type(error).__name__}: {error}")

    def start(self) -> None:
        """Create or resume the tracker's own run."""
        raise NotImplementedError

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Log the metrics of one epoch."""
        raise NotImplementedError

    def log_test(self, metrics: Mapping[str, float]) -> None:
        """Log the test metrics: `test/acc1`, `test/loss`, ..."""
        raise NotImplementedError

    def finish(self, state: str) -> None:
        """End the tracker's own run; `state` is finished, failed or stopped."""
        raise NotImplementedError

    @property
    def id(self) -> str | None:
        """Id of the tracker's own run; None before the first start."""
        return (read_json(self.run.folder / IDS) or {}).get(self.name)

    def save_id(self, tracker_id: str) -> None:
        """Save the id of the tracker's own run, so that a resumed run continues it."""
        ids = read_json(self.run.folder / IDS) or {}
        write_json(self.run.folder / IDS, ids | {self.name: tracker_id})


class WandbTracker(Tracker):
    """Weights & Biases; offline if WANDB_MODE says so, or without an API key."""

    name = package = "wandb"

    def start(self) -> None:
        wandb: Any = import_module(self.package)
        job = self.run.job()
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", job.name), name=self.run.name, mode=mode,
            id=self.id, resume="allow", config=job.tree(), dir=self.run.folder / "logs",
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )  # fmt: skip
        self.save_id(self.wandb_run.id)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.wandb_run.log(dict(metrics), step=epoch)

    def log_test(self, metrics: Mapping[str, float]) -> None:
        self.wandb_run.summary.update(dict(metrics))

    def finish(self, state: str) -> None:
        self.wandb_run.finish(exit_code=int(state == "failed"))


class MlflowTracker(Tracker):
    """MLflow, with an experiment named like the job."""

    name = package = "mlflow"

    def start(self) -> None:
        mlflow: Any = import_module(self.package)
        self.entities: Any = import_module("mlflow.entities")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri and isinstance(self.run.location, Path):
            uri = f"sqlite:///{self.run.location.parent.parent}/mlflow.db"
        self.client = mlflow.MlflowClient(uri)
        self.run_id = self.id or self._create()

    def _create(self) -> str:
        job = self.run.job()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", job.name)
        existing = self.client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else self.client.create_experiment(name)
        run_id = str(self.client.create_run(experiment, run_name=self.run.name).info.run_id)
        params = [
            self.entities.Param(key, str(value)[:VALUE_LENGTH])
            for key, value in flatten(job.tree()).items()
        ]
        self.client.log_batch(run_id, params=params)
        self.client.set_tag(run_id, "raycnn.folder", str(self.run.location))
        self.save_id(run_id)
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        now = int(1000 * time.time())
        entries = [self.entities.Metric(key, value, now, epoch) for key, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=entries)

    def log_test(self, metrics: Mapping[str, float]) -> None:
        self.log_metrics(metrics, 0)

    def finish(self, state: str) -> None:
        states = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
        self.client.set_terminated(self.run_id, states[state])


class TrackioTracker(Tracker):
    """trackio, with a project named like the job."""

    name = package = "trackio"

    def start(self) -> None:
        trackio: Any = import_module(self.package)
        job = self.run.job()
        name = self.run.name.replace("/", "-")
        resume = "must" if self.id else "never"
        self.trackio_run = trackio.init(
            project=job.name, name=name, config=job.tree(), resume=resume, embed=False
        )
        self.save_id(name)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.trackio_run.log(dict(metrics), step=epoch)

    def log_test(self, metrics: Mapping[str, float]) -> None:
        self.trackio_run.log(dict(metrics))

    def finish(self, state: str) -> None:
        self.trackio_run.finish()


TRACKERS: dict[str, type[Tracker]] = {
    kind.name: kind for kind in (WandbTracker, MlflowTracker, TrackioTracker)
}


def check_installed(names: Iterable[str]) -> None:
    """Raise EnvironmentUnavailable for a tracker whose package is not installed."""
    for name in names:
        if name in TRACKERS and find_spec(TRACKERS[name].package) is None:
            raise EnvironmentUnavailable(
                f"trackers: {name} is not installed: pip install {TRACKERS[name].package}"
            )


def trackers_of(run: Run, names: Iterable[str]) -> list[Tracker | TensorBoardWriter]:
    """Return the callbacks of the trackers that a job names; the caller closes them."""
    return [TRACKERS.get(name, TensorBoardWriter)(run) for name in names]
