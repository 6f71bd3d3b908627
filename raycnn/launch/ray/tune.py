"""Train the trials of a search in Ray actors, each of which trains one trial after another.

raycnn/search decides what a trial changes, and when it is stopped; Ray starts the processes,
assigns their devices, and reports lost ones.
"""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycnn.config.search import Pool, TuneSpec
from raycnn.errors import ClusterError, EnvironmentUnavailable, Interrupted, RaycnnError
from raycnn.launch.ray.connection import alive_nodes
from raycnn.launch.ray.resources import Node, kind_of, resources_per_worker
from raycnn.launch.ray.shared_folder import SharedFolder, open_shared_trial, share_folder
from raycnn.launch.signals import Stop
from raycnn.launch.trial import TrialOutcome, fit_trial_alone, is_past, run_trial
from raycnn.launch.worker import driver_paths, set_data_root
from raycnn.paths import data_root
from raycnn.runtime import device
from raycnn.runtime.device import DEVICE_KINDS
from raycnn.search.folder import Search, SearchView, Trial
from raycnn.search.queue import TrialQueue
from raycnn.training.callbacks import WorkersRestarted

POLL_INTERVAL_S = 0.5  # for updating the view, and noticing a request to stop
NODES_INTERVAL_S = 5
START_TIMEOUT_S = 60  # for an actor with its resources to import torch
MAX_FAILED_STARTS = 3  # consecutive failed starts of actors


@dataclass(frozen=True)
class Slot:
    """Resources for one trial at a time."""

    pool: Pool
    """The pool, with a concrete kind of device instead of `auto`."""
    resources: dict[str, float]
    """Ray resources of each worker of the trial."""


def slots(search: TuneSpec, nodes: list[Node]) -> list[Slot]:
    """Return a slot for each trial that can run at once; earlier pools take resources first.

    Raises ClusterError for a pool in which not even one trial fits.
    """
    free = [dict(node.total) for node in nodes]
    reserved: list[Slot] = []
    for pool in search.tune.pools:
        kind = kind_of(pool.worker_config, nodes)
        resources = resources_per_worker(pool.worker_config, kind, nodes)
        slot = Slot(pool.model_copy(update={"device": kind.name}), resources)
        while len(reserved) != search.tune.concurrency and _reserve(free, slot):
            reserved.append(slot)
    return reserved


def _reserve(free: list[dict[str, float]], slot: Slot) -> bool:
    """Subtract a slot's resources from the free ones of the nodes; return False if too few."""
    left = [dict(node) for node in free]
    for _ in range(slot.pool.workers):
        fitting = (n for n in left if all(n.get(k, 0) >= v for k, v in slot.resources.items()))
        node = next(fitting, None)
        if node is None:
            return False
        for key, amount in slot.resources.items():
            node[key] -= amount
    free[:] = left
    return True


def run(search: Search, nodes: list[Node], view: SearchView, serve: bool) -> None:
    """Train every trial that has not ended.

    With `serve` the nodes may be other machines, to which the search folder is served.

    Raises Interrupted on a request to stop, ClusterError when no node has room for trials, and
    EnvironmentUnavailable when a disk is full or another process trains a trial. Trials that have
    not ended resume from their last checkpoints, also when uploads have failed.
    """
    executor = _Executor(search, view, serve)
    with executor.stop.listening():
        try:
            executor.run(nodes)
        finally:
            executor.close()
    if executor.stop.requested:
        raise Interrupted("stopped on request")
    if executor.error:
        raise executor.error


class _Executor:
    """Maintains an actor in every slot, and assigns the next trial to each free one."""

    def __init__(self, search: Search, view: SearchView, serve: bool):
        self.search, self.view = search, view
        self.shared = share_folder(search.folder, serve=serve)
        self.timeout_s = search.spec.architectures[0].job.workers.timeout_s
        self.queue = TrialQueue(search)
        self.actors: list[_Actor] = []
        self.stop = Stop(busy=lambda: bool(self._training()))
        self.deadline: float | None = None
        self.error: RaycnnError | None = None
        """The reason why the remaining trials cannot be trained; None if they can."""
        self.retries = Counter[str]()
        self.failed_starts = 0
        self.alive_at = self.nodes_at = time.monotonic()

    def run(self, nodes: list[Node]) -> None:
        self._resize(nodes)
        while True:
            stopping = self.stop() or self.search.upload_failed
            if stopping:
                self._request_stop()
            if stopping or self.error or is_past(self.deadline):
                self.queue.waiting.clear()
            self._assign()
            training = self._training()
            self.view.show(self.search, [trial.id for trial in training])
            if not training and not self.queue.waiting:
                return
            self._collect()
            self._poll_nodes()

    def close(self) -> None:
        """End all actors: Ray may outlive the search."""
        for actor in self.actors:
            ray.kill(actor.handle)

    def _training(self) -> list[Trial]:
        return [actor.trial for actor in self.actors if actor.trial]

    def _request_stop(self) -> None:
        """Ask the workers of all running trials to save and stop."""
        for trial in self._training():
            with suppress(OSError):
                trial.run.request_stop()

    def _assign(self) -> None:
        """Assign waiting trials to free actors."""
        for actor in self.actors:
            if actor.free and self.queue.waiting:
                budget = self.search.spec.tune.time_budget_s
                if budget and not self.deadline:
                    self.deadline = time.time() + budget
                actor.train(self.shared, self.queue.take(actor.slot.pool), self.deadline)

    def _collect(self) -> None:
        """Wait briefly for actors to become free, and take their results."""
        calls = {actor.call: actor for actor in self.actors if actor.call}
        if not calls:
            time.sleep(POLL_INTERVAL_S)
        ready, _ = ray.wait([*calls], timeout=POLL_INTERVAL_S) if calls else ([], [])
        for call in ready:
            self._take_result(calls[call])
        if any(actor.free or actor.trial for actor in self.actors):
            self.alive_at = time.monotonic()

    def _take_result(self, actor: "_Actor") -> None:
        trial, actor.trial = actor.trial, None
        call, actor.call = actor.call, None
        try:
            error = ray.get(call)
        except RayTaskError:  # a bug, with its traceback
            raise
        except RayError:
            self.actors.remove(actor)
            ray.kill(actor.handle)  # one that is only unreachable might go on training
            self.nodes_at = 0.0  # look for room for another actor now
            self._put_back(trial) if trial else self._count_failed_start()
            return
        self.failed_starts = 0
        self.error = self.error or error
        if trial:
            self.queue.complete(trial)

    def _count_failed_start(self) -> None:
        self.failed_starts += 1
        if self.failed_starts == MAX_FAILED_STARTS:
            self.error = ClusterError("Ray's processes are lost as soon as they start")

    def _put_back(self, trial: Trial) -> None:
        """Put back a trial whose actor was lost, or fail it after `failure.retries` losses."""
        if trial.ended:  # lost between the last record and the answer
            self.queue.complete(trial)
            return
        self.retries[trial.id] += 1
        retry, retries = self.retries[trial.id], trial.run.job().failure.retries
        if retry <= retries:
            error = "the process of a trial, or its node, ended"
            with suppress(OSError):
                trial.run.add_event(
                    WorkersRestarted(error=error, cause="lost", retry=retry, retries=retries)
                )
            self.queue.put_back(trial)
            return
        reason = "its worker was lost more often than failure.retries allows"
        trial.update(state="failed", reason=reason)
        self.queue.complete(trial)

    def _poll_nodes(self) -> None:
        """Adapt to nodes that are removed or added; give up when none has room for too long."""
        if time.monotonic() - self.nodes_at < NODES_INTERVAL_S:
            return
        self.nodes_at = time.monotonic()
        with suppress(RayError, RuntimeError):  # the next poll may succeed
            self._resize(alive_nodes())
        waited_s = time.monotonic() - self.alive_at
        if self.queue.waiting and waited_s > self.timeout_s + START_TIMEOUT_S * bool(self.actors):
            worker = self.search.spec.tune.pools[0].worker_config
            self.error = ClusterError(
                f"no node had room for a trial for {waited_s:.0f} s (workers.timeout_s): "
                f"{worker.cpus or 1} CPU each worker"
            )

    def _resize(self, nodes: list[Node]) -> None:
        """Start actors in new slots, and end idle ones whose slot is gone."""
        try:
            new = slots(self.search.spec, nodes)
        except ClusterError as error:
            new = []
            if not self._training() and self.actors:
                self.view.log(f"waiting for nodes: {error}")
        for actor in list(self.actors):
            if actor.slot in new:
                new.remove(actor.slot)
            elif not actor.trial:
                self.actors.remove(actor)
                ray.kill(actor.handle)
        self.actors += [_Actor(slot) for slot in new]


class _Actor:
    """The driver's side of a process that trains trials."""

    def __init__(self, slot: Slot):
        self.slot = slot
        self.handle = ray.remote(_Trainer).options(**_options(slot)).remote()
        self.trial: Trial | None = None
        self.call: Any = self.handle.ready.remote()  # type: ignore[attr-defined]
        """The pending call; None when the actor is free."""

    @property
    def free(self) -> bool:
        return self.call is None

    def train(self, search: SharedFolder, trial: Trial, deadline: float | None) -> None:
        job = trial.run.job()
        root = job.data.root and str(data_root(job.data.root))  # relative to the driver's folder
        self.trial = trial
        self.call = self.handle.train.remote(  # type: ignore[attr-defined]
            search, trial.id, job.storage.timeout_s, self.slot, deadline, root, driver_paths()
        )


def _options(slot: Slot) -> dict[str, Any]:
    """Return an actor's resources: a trial's, or none if the trial's workers request their own."""
    if slot.pool.workers > 1:
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=True)
        return {"num_cpus": 0, "scheduling_strategy": strategy}
    others = {k: v for k, v in slot.resources.items() if k not in ("CPU", "GPU")}
    return {
        "num_cpus": slot.resources["CPU"],
        "num_gpus": slot.resources.get("GPU", 0),
        "resources": others,
    }


class _Trainer:
    """The actor: a process that trains trials."""

    def ready(self) -> None:
        """Return once the process can train."""

    def train(
        self,
        shared: SharedFolder,
        name: str,
        timeout_s: float,
        slot: Slot,
        deadline: float | None,
        root: str | None,
        paths: dict[str, str],
    ) -> RaycnnError | None:
        """Train a trial; return the error if it was not the trial's own."""
        set_data_root(root, paths)
        try:
            with open_shared_trial(shared, name, timeout_s) as (search, trial):
                work = partial(_fit, search, trial, shared, slot, deadline, root)
                run_trial(trial, work)
        except (ClusterError, EnvironmentUnavailable) as error:
            return error
        return None


def _fit(
    search: Search,
    trial: Trial,
    shared: SharedFolder,
    slot: Slot,
    deadline: float | None,
    root: str | None,
) -> TrialOutcome:
    """Train a trial in this process, or with several workers in others."""
    if slot.pool.workers == 1:
        kind = device.find(slot.pool.device)
        chosen = kind.select(0, slot.pool.cpus)
        return fit_trial_alone(search, trial, chosen, deadline, root=root)
    from raycnn.launch.ray import trainer  # slow to import, and not needed for one worker

    kind = DEVICE_KINDS[slot.pool.device]
    return trainer.train_trial(shared, trial, kind, slot.resources, deadline)
