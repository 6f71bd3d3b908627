"""A job's workers on Ray: TorchTrainer (Train V2) starts them, and starts them again when lost.

Ray retries whatever a worker raises, as often as it takes; what is counted, and what is no retry's
matter, is decided in channel.py. Ray's `fit` waits in a thread of its own, so that this one can
show events, pass on a request to stop, and give up.
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

from raycnn.config.schema import JobSpec
from raycnn.errors import ClusterError, Interrupted, WorkerLost, first_line
from raycnn.launch.background import poll_in_background
from raycnn.launch.launcher import address_of
from raycnn.launch.ray import compat, entry, relay
from raycnn.launch.ray.backend import NoBackend
from raycnn.launch.ray.channel import LossReporter, News, open_channel
from raycnn.launch.ray.resource_watch import LOOK_S, ResourceWatch
from raycnn.launch.ray.resources import Node, kind_of, resources_per_worker
from raycnn.launch.signals import Stop
from raycnn.launch.trial import Ending
from raycnn.paths import cache_folder, data_root
from raycnn.runs.directory import POLL_INTERVAL_S, Run
from raycnn.runtime.device import DeviceKind
from raycnn.search.folder import Search, Trial
from raycnn.training.callbacks import Callback, Event, RestartPlanned, StopRequested

ANSWER_S = 10  # of the channel, which is on this machine
STARTS = 3  # tries to start workers where Ray gives up on one that dies as it starts
START_S = 30.0  # for Ray to find room for a group, before it looks how many fit
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# For workers to come to the same report: the first name is of newer versions of Ray.
TIMEOUTS = ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_REPORT_BARRIER_TIMEOUT_S")
SNAPSHOT = "checkpoint_manager_snapshot.json"  # of Ray's: what an earlier fit reported


def train(job: JobSpec, open_run: Callable[[], Run], nodes: list[Node], view: Callback) -> Run:
    """Train the job in its run folder on Ray, resuming from what is there; return the run."""
    kind = kind_of(job.workers, nodes)
    ask = resources_per_worker(job.workers, kind, nodes)
    run = open_run()
    stop = Stop(busy=run.training)
    with run.lock(), stop.listening():
        extra = {"keeper": relay.keep(run)} if address_of(job.workers) else {}
        driver = Driver(job, run, ask, view, stop)
        driver.wait_for_room()
        driver.fit(kind, extra)
    return run


def train_trial(
    search: Search, trial: Trial, kind: DeviceKind, ask: dict[str, float], deadline: float | None
) -> Ending:
    """Train a trial of several workers; this process has no part in it."""
    job = trial.run.job()
    if job.data.root:  # as the driver takes it: see find_data
        job = job.change({"data.root": os.environ["RAYCNN_DATA"]})
    extra = {"search": str(search.folder), "deadline": deadline}
    return Driver(job, trial.run, ask).fit(kind, extra) or {}


class Driver:
    """One job on Ray, as the process that started it sees it."""

    def __init__(
        self,
        job: JobSpec,
        run: Run,
        ask: dict[str, float],
        view: Callback | None = None,
        stop: Stop | None = None,
    ):
        self.job, self.run, self.ask, self.view, self.stop = job, run, ask, view, stop
        workers = job.workers
        self.channel: Any = open_channel(job.failure.retries, workers.most, workers.asked)
        self.resources = ResourceWatch(workers, ask)
        self.news = News([], None, [], None)
        self._seen, self._stopping = 0, False
        self._fault: Exception | None = None

    def wait_for_room(self) -> None:
        """Return once the workers fit beside what else runs, or when asked to stop.

        Raises ClusterError when they still do not fit after `workers.timeout_s`.
        """
        self.resources.wait_for_room(lambda event: self._tell(event, own=True), self._stop_asked)

    def fit(self, kind: DeviceKind, extra: dict[str, Any]) -> Any:
        """Return what rank 0 returned. Raises the error that ended the job."""
        config = self._config(kind, extra)
        fitting = threading.Thread(target=self._fit, args=(kind, config), daemon=True)
        fitting.start()
        try:
            with poll_in_background(self._look_at_resources, LOOK_S):
                while fitting.is_alive() and not self._should_leave():
                    fitting.join(POLL_INTERVAL_S)
                    self._look()
            self._look()
        finally:
            ray.kill(self.channel)  # workers that still come find it gone, and end
        if self.news.outcome:
            if self.news.outcome.error:
                raise self.news.outcome.error
            return self.news.outcome.value
        if self.resources.gave_up:
            raise self.resources.gave_up
        if self._stopping:
            raise Interrupted(f"stopped on request: `raycnn resume {self.run.home}` goes on")
        raise self._fault or ClusterError("Ray ended the workers, and said nothing of why")

    def _fit(self, kind: DeviceKind, config: dict[str, Any]) -> None:
        """Have Ray train; in a thread of its own.

        A worker that dies in the moment it starts is not retried by Ray, but is here.
        """
        limit_s = self.job.workers.timeout_s
        for key in TIMEOUTS:
            os.environ.setdefault(key, str(limit_s))
        for _ in range(STARTS):
            began = time.monotonic()
            try:
                self._trainer(kind, config).fit()
                return
            except ray.train.ControllerError as error:
                self._fault = ClusterError(f"Ray could not start the workers: {first_line(error)}")
                if time.monotonic() - began > limit_s:
                    return
            except Exception as error:
                self._fault = error
                return

    def _trainer(self, kind: DeviceKind, config: dict[str, Any]) -> TorchTrainer:
        workers, folder = self.job.workers, self.run.folder
        (folder / "checkpoints" / SNAPSHOT).unlink(missing_ok=True)
        callbacks: list[Any] = [LossReporter(self.channel)]
        start_s = os.environ.setdefault(START_TIMEOUT, str(min(START_S, workers.timeout_s / 2)))
        return TorchTrainer(
            entry.train,
            train_loop_config=config,
            torch_config=NoBackend(backend=kind.backend),
            scaling_config=compat.scaling_config(
                workers, use_gpu=kind.resource == "GPU", resources_per_worker=self.ask
            ),
            run_config=RunConfig(
                storage_path=str(folder),
                name="checkpoints",  # Ray takes a checkpoint that is in its own folder as it is
                failure_config=FailureConfig(
                    max_failures=-1,
                    controller_failure_limit=math.ceil(workers.timeout_s / float(start_s)),
                ),
                callbacks=callbacks,
            ),
        )

    def _config(self, kind: DeviceKind, extra: dict[str, Any]) -> dict[str, Any]:
        """Return what the workers must know."""
        root = self.job.data.root and str(data_root(self.job.data.root))
        job = self.job.change({"workers.device": kind.name, "data.root": root})
        return extra | {
            "channel": self.channel,
            "job": job.tree(),
            "run": str(self.run.home),
            "mark": relay.mark(self.run),
            "threads": int(self.ask["CPU"]),
            # Other machines have other working folders; what their own environment says goes first.
            "environment": {
                "RAYCNN_DATA": str(data_root()),
                "RAYCNN_CACHE": str(cache_folder()),
            },
        }

    def _look(self) -> None:
        """Show what happened, and pass on a request to stop."""
        if not self._stopping and self._stop_asked():
            self._stopping = True
            self.channel.ask.remote("stop")
            if self.view:
                self.view.on_event(StopRequested())
        try:
            self.news = ray.get(self.channel.news.remote(self._seen), timeout=ANSWER_S)
        except GetTimeoutError:  # a head that is away is said by Ray, in a minute
            return
        except RayError as error:
            raise ClusterError(f"the connection to Ray is lost: {first_line(error)}") from None
        self._seen += len(self.news.events)
        for event, own in self.news.events:
            self._tell(event, own)
        if self.news.passing and self.view:
            self.view.on_event(self.news.passing)

    def _stop_asked(self) -> bool:
        return bool(self.stop and self.stop.asked) or self.run.stop_requested()

    def _look_at_resources(self) -> None:
        with suppress(RayError):  # the next look may
            event = self.resources.look(len(self.news.workers))
            if event:
                self._tell(event, own=True)
            if isinstance(event, RestartPlanned):
                self.channel.ask.remote("restart")

    def _tell(self, event: Event, own: bool) -> None:
        """Show an event, and store it where no worker has."""
        if own:
            with suppress(OSError):  # a full disk
                self.run.add_event(event)
        if self.view:
            self.view.on_event(event)

    def _should_leave(self) -> bool:
        """Return whether to wait no longer for Ray, which would start workers again in vain."""
        outcome, training = self.news.outcome, bool(self.news.workers)
        lost = bool(outcome and isinstance(outcome.error, WorkerLost))
        return lost or bool(self.resources.gave_up) or (self._stopping and not training)
