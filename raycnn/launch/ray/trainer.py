"""Train a job on Ray: TorchTrainer (Train V2) starts its workers, and restarts them when lost.

Ray retries every error of a worker without limit; channel_actor.py decides which errors to raise,
and counts retries. Ray's `fit` runs in a background thread, so that this one can show events,
forward a request to stop, and give up.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayError
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer

from raycnn.background import poll_in_background
from raycnn.config.schema import JobSpec
from raycnn.errors import ClusterError, Interrupted, WorkerLost, first_line
from raycnn.launch.ray import compat, entry
from raycnn.launch.ray.channel_actor import ChannelUpdate, open_channel
from raycnn.launch.ray.controller import NoBackend, WorkerFailureReporter
from raycnn.launch.ray.resource_watch import WATCH_INTERVAL_S, ResourceWatch
from raycnn.launch.ray.resources import Node, kind_of, resources_per_worker
from raycnn.launch.ray.shared_folder import SharedFolder, share_folder
from raycnn.launch.signals import Stop
from raycnn.launch.trial import TrialOutcome, is_past
from raycnn.launch.worker import driver_paths
from raycnn.paths import data_root
from raycnn.runs.directory import STOP_POLL_INTERVAL_S, Run
from raycnn.runtime.device import DeviceKind
from raycnn.search.folder import Trial
from raycnn.training.callbacks import (
    Callback,
    Event,
    RestartPlanned,
    StopRequested,
    WorkersConnected,
)

CHANNEL_TIMEOUT_S = 10  # timeout of the channel, which is on this machine
MAX_START_ATTEMPTS = 3  # to start workers: Ray gives up when one dies during its start
GROUP_START_TIMEOUT_S = 30.0  # after which Ray counts anew how many workers fit
GROUP_START_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Timeouts of the barrier in ray.train.report: newer versions of Ray have the first name.
BARRIER_TIMEOUT_VARIABLES = ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_REPORT_BARRIER_TIMEOUT_S")
# Ray trains in a thread that is not the main one; glibc would give it a heap of its own, which does
# not keep freed memory: see runtime/memory.py.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's record of the reports of an earlier fit


def train_on_ray(
    job: JobSpec, open_run: Callable[[], Run], nodes: list[Node], view: Callback, serve: bool
) -> Run:
    """Train a job on Ray in the run that `open_run` opens, resuming from its checkpoint.

    With `serve` the nodes may be other machines, to which the run folder is served. Returns the
    run. Raises ClusterError, Interrupted, or the error that ended the job.
    """
    kind = kind_of(job.workers, nodes)
    worker_resources = resources_per_worker(job.workers, kind, nodes)
    run = open_run()
    stop = Stop(busy=run.training)
    with run.lock(), stop.listening():
        driver = Driver(job, run, worker_resources, serve, stop, view)
        driver.wait_for_resources()
        driver.fit(kind, {})
    return run


def train_trial(
    search: SharedFolder,
    trial: Trial,
    kind: DeviceKind,
    worker_resources: dict[str, float],
    deadline: float | None,
) -> TrialOutcome:
    """Train a trial with several workers, none of which is this process."""
    job = trial.run.job()
    if job.data.root:  # the driver's path: see set_data_root
        job = job.change({"data.root": os.environ["RAYCNN_DATA"]})
    serve = search.server is not None
    driver = Driver(job, trial.run, worker_resources, serve, lambda: is_past(deadline))
    return driver.fit(kind, {"search": tuple(search)}) or {}


class Driver:
    """The driver's side of one job on Ray."""

    def __init__(
        self,
        job: JobSpec,
        run: Run,
        worker_resources: dict[str, float],
        serve: bool,
        stop: Callable[[], bool],
        view: Callback | None = None,
    ):
        """Prepare to train; with `serve` also on nodes that do not see the run folder.

        `stop` reports requests to stop other than those in the run folder.
        """
        self.job, self.run, self.view, self.stop = job, run, view, stop
        self.worker_resources, self.serve = worker_resources, serve
        workers = job.workers
        self.channel: Any = open_channel(job.failure.retries, workers.max_count, workers.count_text)
        self.resources = ResourceWatch(workers, worker_resources)
        self.update = ChannelUpdate([], None, [], None)
        self._events_read, self._stop_sent, self._connected = 0, False, False
        self._trainer_error: Exception | None = None

    def wait_for_resources(self) -> None:
        """Return once the workers fit into the free resources, or on a request to stop.

        Raises ClusterError when they still do not fit after `workers.timeout_s`.
        """
        self.resources.wait_for_resources(
            lambda event: self._dispatch_event(event, to_store=True), self._stop_requested
        )

    def fit(self, kind: DeviceKind, trial_config: dict[str, Any]) -> Any:
        """Train, and return the value of rank 0. Raises the error that ended the job.

        `trial_config` is what the workers of a trial need in addition; {} for other jobs.
        """
        config = self._worker_config(kind, trial_config)
        fit_thread = threading.Thread(target=self._run_trainer, args=(kind, config), daemon=True)
        fit_thread.start()
        try:
            with poll_in_background(self._poll_resources, WATCH_INTERVAL_S):
                while fit_thread.is_alive() and not self._should_abort():
                    fit_thread.join(STOP_POLL_INTERVAL_S)
                    self._poll_channel()
            self._poll_channel()
        finally:
            ray.kill(self.channel)  # workers that start later find it dead, and end
        # From the cause to its consequences: the outcome comes from the workers; without one,
        # this driver has given up or was to stop, and either makes Ray's trainer fail too.
        if self.update.outcome:
            if self.update.outcome.error:
                raise self.update.outcome.error
            return self.update.outcome.value
        if self.resources.error:
            raise self.resources.error
        if self._stop_sent:
            raise Interrupted(f"stopped on request: `{self.run.command('resume')}` continues")
        raise self._trainer_error or ClusterError("Ray ended the workers without giving a reason")

    def _run_trainer(self, kind: DeviceKind, config: dict[str, Any]) -> None:
        """Run Ray's trainer; called in a background thread.

        Ray does not retry when a worker dies during its start, so this does.
        """
        limit_s = self.job.workers.timeout_s
        for key in BARRIER_TIMEOUT_VARIABLES:
            os.environ.setdefault(key, str(limit_s))
        for _ in range(MAX_START_ATTEMPTS):
            began = time.monotonic()
            try:
                self._build_trainer(kind, config).fit()
                return
            except ray.train.ControllerError as error:
                message = f"Ray could not start the workers: {first_line(error)}"
                self._trainer_error = ClusterError(message)
                if time.monotonic() - began > limit_s:  # it has waited as long as it may
                    return
            except Exception as error:
                self._trainer_error = error
                return

    def _build_trainer(self, kind: DeviceKind, config: dict[str, Any]) -> TorchTrainer:
        workers, folder = self.job.workers, self.run.folder
        (folder / "checkpoints" / SNAPSHOT).unlink(missing_ok=True)
        callbacks: list[Any] = [WorkerFailureReporter(self.channel)]
        start_s = os.environ.setdefault(
            GROUP_START_TIMEOUT_VARIABLE, str(min(GROUP_START_TIMEOUT_S, workers.timeout_s / 2))
        )
        return TorchTrainer(
            entry.worker_main,
            train_loop_config=config,
            torch_config=NoBackend(backend=kind.backend),
            scaling_config=compat.scaling_config(
                workers,
                use_gpu=kind.resource == "GPU",
                resources_per_worker=self.worker_resources,
            ),
            run_config=RunConfig(
                storage_path=str(folder),
                name="checkpoints",  # Ray does not copy a checkpoint in its own folder
                # The channel counts retries. Every start that times out is a failure of Ray's
                # controller: together they may last workers.timeout_s.
                failure_config=FailureConfig(
                    max_failures=-1,
                    controller_failure_limit=math.ceil(workers.timeout_s / float(start_s)),
                ),
                callbacks=callbacks,
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        )

    def _worker_config(self, kind: DeviceKind, trial_config: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration for the workers.

        It has none of our classes: Ray's controller reads it too, and would import their modules,
        and torch, before it starts the workers.
        """
        root = self.job.data.root and str(data_root(self.job.data.root))
        job = self.job.change({"workers.device": kind.name, "data.root": root})
        return trial_config | {
            "channel": self.channel,
            "job": job.tree(),
            "run": tuple(share_folder(self.run.location, serve=self.serve)),
            "threads": int(self.worker_resources["CPU"]),
            "paths": driver_paths(),
        }

    def _poll_channel(self) -> None:
        """Show new events, and forward a request to stop."""
        if not self._stop_sent and self._stop_requested():
            self._stop_sent = True
            self.channel.set_request.remote("stop")
            self._dispatch_event(StopRequested())
        try:
            update = self.channel.update.remote(self._events_read)
            self.update = ray.get(update, timeout=CHANNEL_TIMEOUT_S)
        except GetTimeoutError:  # Ray itself reports a head that is down, after a minute
            return
        except RayError as error:
            raise ClusterError(f"the connection to Ray is lost: {first_line(error)}") from None
        if self.update.workers and not self._connected:
            self._connected = True
            self._dispatch_event(WorkersConnected(workers=len(self.update.workers)))
        self._events_read += len(self.update.events)
        for event, to_store in self.update.events:
            self._dispatch_event(event, to_store)
        if self.update.transient:
            self._dispatch_event(self.update.transient)

    def _stop_requested(self) -> bool:
        return self.stop() or self.run.stop_requested()

    def _poll_resources(self) -> None:
        """Report a lack of resources, and have the workers restart where more of them fit."""
        with suppress(RayError):  # the next call may succeed
            event = self.resources.poll(len(self.update.workers))
            if event:
                self._dispatch_event(event, to_store=True)
            if isinstance(event, RestartPlanned):
                self.channel.set_request.remote("restart")

    def _dispatch_event(self, event: Event, to_store: bool = False) -> None:
        """Show an event, and store it if no worker has."""
        if to_store:
            with suppress(OSError):  # a full disk
                self.run.add_event(event)
        if self.view:
            self.view.on_event(event)

    def _should_abort(self) -> bool:
        """Return whether to give up on Ray, which would otherwise keep restarting workers."""
        outcome, training = self.update.outcome, bool(self.update.workers)
        lost = bool(outcome and isinstance(outcome.error, WorkerLost))
        return lost or bool(self.resources.error) or (self._stop_sent and not training)
