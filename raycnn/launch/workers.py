"""A job's workers on Ray: TorchTrainer (Train V2) starts them and their process group.

Two of its parts are our own. Its controller, which otherwise is an actor, runs in this process:
starting one more Python that imports torch costs a third of the time to the first step. And its
failure policy sends a job back to its last checkpoint for lost workers only.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup

from raycnn import device, dist, spec
from raycnn.data.source import root_of
from raycnn.data.store import cache
from raycnn.device import Kind
from raycnn.errors import ClusterError, RaycnnError, WorkerLost
from raycnn.launch.cluster import Node, ask_of, kind_of
from raycnn.launch.stop import Stop
from raycnn.launch.trial import Ending, work_on
from raycnn.launch.worker import work
from raycnn.runs import LOOK_S, Run, View
from raycnn.search.folder import Search, Trial
from raycnn.spec import JobSpec

STARTS = 3  # tries to find room for the workers, each of which has a deadline


class PeerLost(Exception):
    """A worker found another one gone."""


def train(job: JobSpec, open_run: Callable[[], Run], nodes: list[Node], view: View) -> Run:
    """Train the job in its run folder on Ray, going on from what is there; returns the run."""
    kind = kind_of(job.workers, nodes)
    ask = ask_of(job.workers, kind, nodes)
    run = open_run()
    stop = Stop(busy=run.training)
    trainer = _trainer(job, run, kind, ask)
    trainer.tell = run.add_event
    with run.held(), stop.listening(), _following(run, view, stop):
        error = _fit(trainer, job.failure.retries)
    if isinstance(error, RaycnnError):
        raise error
    return run


def train_trial(
    search: Search, trial: Trial, kind: Kind, ask: dict[str, float], deadline: float | None
) -> Ending:
    """Train a trial of several workers; this process has no part in it."""
    job = trial.run.job()
    also = {"search": str(search.folder), "deadline": deadline}
    trainer = _trainer(job, trial.run, kind, ask, also)
    trainer.tell = trial.run.add_event
    ended = _fit(trainer, job.failure.retries)
    if isinstance(ended, RaycnnError):
        raise ended
    return ended or {}


def _trainer(
    job: JobSpec,
    run: Run,
    kind: Kind,
    ask: dict[str, float],
    also: dict[str, Any] | None = None,
) -> "_Trainer":
    config = (also or {}) | {
        "job": job.change({"workers.device": kind.name, "data.root": None}).tree(),
        "run": str(run.folder),
        "threads": int(ask["CPU"]),
        # Other machines have other working folders, and none of this process's environment.
        "environment": {"RAYCNN_DATA": str(root_of(job.data.root)), "RAYCNN_CACHE": str(cache())},
    }
    return _Trainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend=kind.backend, timeout_s=job.workers.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=job.workers.count, use_gpu=kind.resource == "GPU", resources_per_worker=ask
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.folder / "logs"),
            failure_config=FailureConfig(max_failures=job.failure.retries),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit(trainer: "_Trainer", retries: int) -> RaycnnError | Ending | None:
    """What rank 0 returned: an error, which would come back on every retry, or a trial's ending."""
    try:
        return trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        if not _lost(error):
            raise
        raise WorkerLost(
            f"workers were lost more than {retries} times (failure.retries): "
            f"{_first_line(error)}; the last checkpoint is whole"
        ) from None
    except ray.train.ControllerError as error:
        if not isinstance(error.controller_failure, _NO_ROOM):
            raise
        raise ClusterError(f"the workers did not start in {STARTS} tries: {error}") from None


def _worker(config: dict[str, Any]) -> RaycnnError | Ending | None:
    """In each of Ray's workers. A user's error is returned: what is raised may be retried."""
    os.environ.update(config["environment"])
    job, run = spec.from_tree(config["job"]), Run(Path(config["run"]))
    try:
        chosen = dist.together(lambda: _place(job, run, config["threads"]))
        if "search" in config:
            return work_on(
                Search(Path(config["search"])), Trial(run.folder), chosen, config["deadline"]
            )
        work(job, run, chosen)
    except WorkerLost as error:  # a silent one: Ray is to end it, and to try again
        raise PeerLost(str(error)) from None
    except RaycnnError as error:
        return error
    except Exception as error:
        if dist.lost_peer(error):
            raise PeerLost(str(error)) from error
        raise
    return None


def _place(job: JobSpec, run: Run, threads: int) -> Any:
    if not run.folder.is_dir():
        raise ClusterError(
            f"{ray.util.get_node_ip_address()} does not see {run.folder}: storage.path must be a "
            "folder that all nodes share"
        )
    context = ray.train.get_context()
    kind = device.find(job.workers.device)
    chosen = kind.select(context.get_local_rank(), threads)
    device.check_training(job.train, chosen.type)
    return chosen


@contextmanager
def _following(run: Run, view: View, stop: Stop) -> Iterator[None]:
    """Show what the workers put into the run folder, and pass on a wish to stop."""
    over = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, view, stop, over), daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


def _follow(run: Run, view: View, stop: Stop, over: threading.Event) -> None:
    shown, told, passed_on = len(run.rows()), len(run.events()), False
    while True:
        ending = over.wait(LOOK_S)  # once more after the end, for the last rows
        if stop.asked and not passed_on:
            view.note("saving, then stopping; again to stop now")
            run.ask_to_stop()
            passed_on = True
        for event in run.events()[told:]:
            view.note(event)
            told += 1
        rows = run.rows()
        for row in rows[shown:]:
            view.row({key: float(value) for key, value in row.items() if value})
        shown = len(rows)
        if ending:
            return
        if progress := run.progress():
            view.progress(**progress)


def _lost(error: ray.train.WorkerGroupError) -> bool:
    """Whether every failure comes of a worker, or its node, that is gone."""
    gone = (WorkerHealthCheckFailedError, ray.exceptions.RayActorError, PeerLost)
    return all(isinstance(failure, gone) for failure in error.worker_failures.values())


def _first_line(error: ray.train.WorkerGroupError) -> str:
    rank, failure = min(error.worker_failures.items())
    return f"rank {rank}: {str(failure).strip().splitlines()[0]}"


_NO_ROOM = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


class _RetryLost(FailurePolicy):
    """Lost workers: again, as often as the job allows. Anything else would only come back."""

    def __init__(self, config: FailureConfig, tell: Callable[[str], None]):
        super().__init__(config)
        self.tell = tell
        self.losses = self.starts = 0

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if isinstance(training_failed_error, ray.train.WorkerGroupError):
            self.losses += 1
            most = self.failure_config.max_failures
            again = _lost(training_failed_error) and self.losses <= most
            if again:
                what = _first_line(training_failed_error)
                self.tell(f"lost {what}: starting again, {self.losses} of {most} times")
        else:
            self.starts += 1
            failure = getattr(training_failed_error, "controller_failure", None)
            again = isinstance(failure, _NO_ROOM) and self.starts < STARTS
        return FailureDecision.RETRY if again else FailureDecision.RAISE


class _FixedSize(FixedScalingPolicy):
    """As many workers as asked for, without the actor that would ask an autoscaler for nodes."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _WorkerGroup(WorkerGroup):
    """Ray's, but for two things said below."""

    def _start(self) -> None:
        """Ray does not retry a worker's death during its launch, and keeps the room."""
        try:
            super()._start()
        except ray.exceptions.RayActorError as error:
            if self.has_started():
                self.shutdown()
            raise WorkerGroupStartupFailedError(str(error)) from error

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """Ray hands on an actor handle of the controller, which is no actor here."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{key: values[index] for key, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup


# Each is a process more. One frees the workers' room when the controller dies, which here is when
# the job ends; the other serves Ray's own data sets.
_NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)


class _Trainer(TorchTrainer):
    tell: Callable[[str], None]
    """Where it says that workers were lost."""

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts["scaling_policy"] = _FixedSize(self.scaling_config)
        parts["failure_policy"] = _RetryLost(self.run_config.failure_config, self.tell)
        parts["callbacks"] = [
            part for part in parts["callbacks"] if not isinstance(part, _NOT_NEEDED)
        ]
        controller = _Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()
