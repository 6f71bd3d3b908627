"""A job's workers on Ray: TorchTrainer (Train V2) starts them and their process group.

Three of its parts are our own. Its controller, which otherwise is an actor, runs in this process:
starting one more Python that imports torch costs a third of the time to the first step. Its
failure policy sends a job back to its last checkpoint for lost workers only. How many workers there
are is said in elastic.py.
"""

import asyncio
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
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
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor

from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec, Workers
from raycnn.errors import ClusterError, JobFailed, OutOfMemory, RaycnnError, WorkerLost, first_line
from raycnn.launch.background import poll_in_background
from raycnn.launch.launcher import address_of
from raycnn.launch.ray import elastic, network, npu, relay
from raycnn.launch.ray.connection import Node, kind_of, resources_per_worker
from raycnn.launch.ray.elastic import NOTICE_S, Elastic
from raycnn.launch.signals import Stop
from raycnn.launch.trial import Ending, work_on
from raycnn.launch.worker import find_data, work
from raycnn.paths import cache_folder, data_root
from raycnn.runs.channel import FolderChannel
from raycnn.runs.directory import POLL_INTERVAL_S, Run
from raycnn.runtime import device, distributed
from raycnn.runtime.device import DeviceKind
from raycnn.search.folder import Search, Trial
from raycnn.training.callbacks import (
    Callback,
    Decoding,
    Event,
    Progress,
    StopRequested,
    WorkersRestarted,
)

STARTS = 3  # tries to start the workers that there is room for, each of which has a deadline


class PeerLost(Exception):
    """A worker found another one gone."""


class PeerFull(PeerLost):
    """A worker's device was full: all are to start again with a smaller micro-batch."""


def train(job: JobSpec, open_run: Callable[[], Run], nodes: list[Node], view: Callback) -> Run:
    """Train the job in its run folder on Ray, going on from what is there; returns the run."""
    kind = kind_of(job.workers, nodes)
    ask = resources_per_worker(job.workers, kind, nodes)
    run = open_run()
    stop = Stop(busy=run.training)
    with run.lock(), stop.listening(), _following(run, view, stop):
        also = {"keeper": relay.keep(run)} if address_of(job.workers) else {}
        _fit(_trainer(job, run, kind, ask, also), job.failure.retries)
    return run


def train_trial(
    search: Search, trial: Trial, kind: DeviceKind, ask: dict[str, float], deadline: float | None
) -> Ending:
    """Train a trial of several workers; this process has no part in it."""
    job = trial.run.job()
    if job.data.root:  # as the driver takes it: see find_data
        job = job.change({"data.root": os.environ["RAYCNN_DATA"]})
    also = {"search": str(search.folder), "deadline": deadline}
    return _fit(_trainer(job, trial.run, kind, ask, also), job.failure.retries) or {}


def _trainer(
    job: JobSpec,
    run: Run,
    kind: DeviceKind,
    ask: dict[str, float],
    also: dict[str, Any] | None = None,
) -> "_Trainer":
    root = job.data.root and str(data_root(job.data.root))
    config = (also or {}) | {
        "job": job.change({"workers.device": kind.name, "data.root": root}).tree(),
        "run": str(run.home),
        "mark": relay.mark(run),
        "threads": int(ask["CPU"]),
        # Other machines have other working folders; what their own environment says goes first.
        "environment": {"RAYCNN_DATA": str(data_root()), "RAYCNN_CACHE": str(cache_folder())},
    }
    trainer = _Trainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend=kind.backend, timeout_s=job.workers.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=job.workers.most, use_gpu=kind.resource == "GPU", resources_per_worker=ask
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.folder / "logs"),
            failure_config=FailureConfig(max_failures=job.failure.retries),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.run, trainer.workers = run, job.workers
    return trainer


def _fit(trainer: "_Trainer", retries: int) -> Ending | None:
    """What rank 0 returned: a trial's ending. Raises what a worker raised by its own fault."""
    try:
        return trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        for _, own in sorted(error.worker_failures.items()):
            if isinstance(own, RaycnnError):  # the others' lost connections come of it
                raise own from None
        if not _lost(error):
            raise
        raise WorkerLost(
            f"workers were lost more than {retries} times (failure.retries): "
            f"{_first_lost(error)}; the last checkpoint is whole"
        ) from None
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, RaycnnError):
            raise error.controller_failure from None
        if not isinstance(error.controller_failure, _NO_ROOM):
            raise
        raise ClusterError(f"the workers did not start in {STARTS} tries: {error}") from None


def _worker(config: dict[str, Any]) -> Ending | None:
    """In each of Ray's workers. Raises PeerLost where another is gone, else a RaycnnError."""
    job = job_from_tree(config["job"])
    find_data(job.data.root, config["environment"])
    try:
        with ExitStack() as held:
            chosen = distributed.raise_on_any_rank(lambda: _device(job, config["threads"]))
            run = distributed.raise_on_any_rank(lambda: held.enter_context(_open(job, config)))
            if "search" in config:
                search, one = Search(Path(config["search"])), Trial(run.folder)
                return work_on(search, one, chosen, config["deadline"], elastic.asked)
            fits = distributed.broadcast_from_rank_zero(
                lambda: run.job().train.micro_batch
            )  # on the try before this
            channel = held.enter_context(
                closing(FolderChannel(run, job.workers.timeout_s, elastic.asked))
            )
            work(job.change({"train.micro_batch": fits}), run, chosen, channel)
    except OutOfMemory as error:
        raise PeerFull(str(error)) from None
    except WorkerLost as error:  # a silent one: Ray is to end it, and to try again
        raise PeerLost(str(error)) from None
    except RaycnnError:
        raise
    except Exception as error:
        if distributed.is_peer_loss(error):
            raise PeerLost(str(error)) from error
        raise JobFailed(f"rank {distributed.rank()} failed:\n{traceback.format_exc()}") from None
    return None


def _open(job: JobSpec, config: dict[str, Any]) -> AbstractContextManager[Run]:
    home, keeper = config["run"], config.get("keeper")
    return relay.opened(home, config["mark"], keeper, job.storage.timeout_s)


def _device(job: JobSpec, threads: int) -> Any:
    context = ray.train.get_context()
    kind = device.find(job.workers.device)
    chosen = kind.select(context.get_local_rank(), threads)
    device.check_training(job.train, chosen.type)
    return chosen


@contextmanager
def _following(run: Run, view: Callback, stop: Stop) -> Iterator[None]:
    """Show what the workers put into the run folder, and pass on a wish to stop."""
    told, passed_on = len(run.events()), False

    def look() -> None:
        nonlocal told, passed_on
        if stop.asked and not passed_on:
            view.on_event(StopRequested())
            run.request_stop()
            passed_on = True
        for event in run.events()[told:]:
            view.on_event(event)
            told += 1
        if progress := run.progress():
            view.on_event(_progress(**progress))

    with poll_in_background(look, POLL_INTERVAL_S):
        yield


def _progress(epoch: int, step: int, steps: int) -> Event:
    if epoch:
        return Progress(epoch=epoch, step=step, steps=steps)
    return Decoding(done=step, total=steps)


def _lost(error: ray.train.WorkerGroupError) -> bool:
    """Whether every failure comes of a worker, or its node, that is gone."""
    return all(isinstance(failure, _GONE) for failure in error.worker_failures.values())


def _first_lost(error: ray.train.WorkerGroupError) -> str:
    rank, failure = min(error.worker_failures.items())
    return f"rank {rank}: {first_line(failure)}"


_GONE = (WorkerHealthCheckFailedError, ray.exceptions.RayActorError, PeerLost)
_NO_ROOM = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


class _RetryLost(FailurePolicy):
    """Lost workers: again, as often as the job allows. Anything else would only come back."""

    def __init__(self, config: FailureConfig, size: Elastic):
        super().__init__(config)
        self.size = size
        self.losses = self.starts = 0
        self.most = config.max_failures
        self.micro_batch = size.run.job().train.micro_batch

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if isinstance(training_failed_error, ray.train.WorkerGroupError):
            self.starts = 0
            again = self._after(training_failed_error)
        else:
            self.starts += 1
            failure = getattr(training_failed_error, "controller_failure", None)
            again = isinstance(failure, _NO_ROOM) and self.starts < STARTS
        return FailureDecision.RETRY if again else FailureDecision.RAISE

    def _after(self, error: ray.train.WorkerGroupError) -> bool:
        """Whether to start again. What was announced, or will be otherwise, costs no retry."""
        failures = list(error.worker_failures.values())
        if self.size.is_planned_restart([one for one in failures if not isinstance(one, _GONE)]):
            return True
        if not _lost(error):
            return False
        cause = "lost"
        if any(isinstance(failure, PeerFull) for failure in failures) and self._smaller():
            cause = "memory"
        elif any(_is_preempted_actor(failure) for failure in failures):
            cause = "preempted"
        else:
            self.losses += 1
            if self.losses > self.most:
                return False
        self.size.tell(
            WorkersRestarted(
                error=_first_lost(error), cause=cause, retry=self.losses, retries=self.most
            )
        )
        return True

    def _smaller(self) -> bool:
        """Whether the micro-batch shrank since the last look."""
        before, now = self.micro_batch, self.size.run.job().train.micro_batch
        self.micro_batch = now
        return now is not None and (before is None or now < before)


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
        npu.share(workers)
        if len({worker.metadata.node_id for worker in workers}) > 1:
            ray.get([worker.execute_async(network.choose) for worker in workers])
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

    def _make_and_handle_scaling_decision_for_non_running_worker_group(self, state: Any) -> Any:
        """Ray would free the workers' room after this, and wait 20 s for answers of the lost."""
        if group := self._worker_group:
            failures = state.training_failed_error.worker_failures.values()
            if not self._scaling_policy.is_planned_restart(failures):
                for worker in group.get_workers():
                    ray.kill(worker.actor)
            self._shutdown_worker_group()
        return super()._make_and_handle_scaling_decision_for_non_running_worker_group(state)


# Each is a process more. One frees the workers' room when the controller dies, which here is when
# the job ends; the other serves Ray's own data sets.
_NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)


class _Trainer(TorchTrainer):
    run: Run
    workers: Workers

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        size = Elastic(self.scaling_config, self.workers, self.run)
        parts["scaling_policy"] = size
        parts["failure_policy"] = _RetryLost(self.run_config.failure_config, size)
        parts["callbacks"] = [
            part for part in parts["callbacks"] if not isinstance(part, _NOT_NEEDED)
        ]
        controller = _Controller(**parts)
        with poll_in_background(size.look_for_notices, NOTICE_S):
            asyncio.run(controller.run())
        return controller.get_result()
