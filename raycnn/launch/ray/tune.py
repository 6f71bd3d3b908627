"""The trials of a search on Ray Tune: processes that train one after another.

What a trial changes, where it is trained and when it is stopped is decided in raycnn; Tune starts
the processes, gives them their devices, keeps them between trials and starts lost ones again.
"""

import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raycnn.config.search import Pool, TuneSpec
from raycnn.errors import ClusterError, Interrupted
from raycnn.launch import trial
from raycnn.launch.background import poll_in_background
from raycnn.launch.ray import connection
from raycnn.launch.ray.connection import Node
from raycnn.launch.signals import Stop
from raycnn.launch.worker import find_data
from raycnn.paths import cache_folder, data_root
from raycnn.report.search import draw
from raycnn.runtime import device
from raycnn.search.folder import Search, SearchView, Trial
from raycnn.search.leaderboard import write
from raycnn.search.population import next_trials
from raycnn.search.samplers import make_sampler

LOST = "its worker was lost more often than failure.retries allows"
HEAD = "node:__internal_head__"  # a resource of the node that the driver's Ray was started on
LOOK_S = 0.5  # between two looks at the trials
NODES_S = 5  # between two looks at the nodes


class Place(NamedTuple):
    """Where one trial is trained."""

    pool: Pool
    """Of one kind of device: no longer `auto`."""
    nodes: list[int]
    """Of its workers."""
    ask: dict[str, float]
    """Of Ray's resources, for each worker."""


class ResourceTracker:
    """What the nodes have left: a trial with a place waits only if its node is lost."""

    def __init__(self, search: TuneSpec, nodes: list[Node]):
        """Raises ClusterError for a pool of which not even one trial fits."""
        self.nodes, self.gone = list(nodes), set[int]()
        self.left = [dict(node.total) for node in nodes]
        self.most = search.tune.concurrency
        self.taken = 0
        self.kinds = []
        for pool in search.tune.pools:
            kind = connection.kind_of(pool.trainers, nodes)
            ask = connection.resources_per_worker(pool.trainers, kind, nodes)
            self.kinds.append((pool.model_copy(update={"device": kind.name}), ask))

    def take(self) -> Place | None:
        if self.taken == self.most:
            return None
        for pool, ask in self.kinds:
            place = Place(pool, [], ask)
            while len(place.nodes) < pool.workers and (node := self._with_room(ask)) is not None:
                self._add(node, ask, -1)
                place.nodes.append(node)
            if len(place.nodes) == pool.workers:
                self.taken += 1
                return place
            self._free(place)
        return None

    def see(self, living: list[Node]) -> None:
        """Give no more places on nodes that are gone, and some on those that have come."""
        there, known = {node.address for node in living}, {node.address for node in self.nodes}
        self.gone = {n for n, node in enumerate(self.nodes) if node.address not in there}
        for node in living:
            if node.address not in known:
                self.nodes.append(node)
                self.left.append(dict(node.total))

    def could_hold(self, ask: dict[str, float]) -> bool:
        """Whether a node that is there would have room for it, were nothing else on it."""
        there = [node for n, node in enumerate(self.nodes) if n not in self.gone]
        return connection.capacity(there, ask) > 0

    def give_back(self, place: Place) -> None:
        self._free(place)
        self.taken -= 1

    def _with_room(self, ask: dict[str, float]) -> int | None:
        for node, left in enumerate(self.left):
            enough = all(left.get(key, 0) >= amount for key, amount in ask.items())
            if enough and node not in self.gone:
                return node
        return None

    def _free(self, place: Place) -> None:
        for node in place.nodes:
            self._add(node, place.ask, 1)

    def _add(self, node: int, ask: dict[str, float], sign: int) -> None:
        for key, amount in ask.items():
            self.left[node][key] += sign * amount


def places(search: TuneSpec, nodes: list[Node]) -> list[Place]:
    """Where trials could be trained at once. Raises ClusterError when there is no place."""
    room = ResourceTracker(search, nodes)
    found = []
    while place := room.take():
        found.append(place)
    return found


def run(
    spec: TuneSpec, open_search: Callable[[], Search], nodes: list[Node], view: SearchView
) -> Search:
    """Train every trial that has not ended, then write down what they came to.

    Raises Interrupted when asked to stop, all saved.
    """
    room = ResourceTracker(spec, nodes)
    search = open_search()
    with search.lock():
        feed = _TrialSearcher(search, room)
        with feed.stop.listening(), _following(feed, view):
            _fit(feed, places(spec, nodes))
        draw(search, write(search))
    if feed.stop.asked:
        raise Interrupted(f"stopped as asked, and saved: `raycnn tune --resume {search.folder}`")
    if feed.hopeless:
        raise ClusterError(f"{feed.hopeless}: `raycnn tune --resume {search.folder}` goes on")
    return search


class _TrialSearcher(Searcher):
    """Hands Tune the trials one by one, as there is room for them."""

    def __init__(self, search: Search, room: ResourceTracker):
        super().__init__()
        self.stop = Stop(busy=lambda: bool(self.under_way))
        self.search, self.room = search, room
        search.count_anew()
        begun = Counter(one.facts["architecture"] for one in search.trials())
        self.drawers = {
            a.name: make_sampler(search.spec, a, begun[a.name]) for a in search.spec.architectures
        }
        self.waiting = next_trials(search)
        self.under_way: dict[str, tuple[Trial, Place]] = {}
        self.hopeless = ""
        """Why the cluster cannot train the rest, once that is clear."""
        self.nobody_left = False
        self._stuck_since: float | None = None
        for done in search.trials():
            if done.ended:
                self._tell(done)

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        deadline = self.search.deadline()
        if self.stop() or self.hopeless or (deadline and time.time() > deadline):
            return Searcher.FINISHED
        if not self.waiting:
            return None if self.under_way else Searcher.FINISHED
        place = self.room.take()
        if not place:
            return None
        architecture, number = self.waiting.pop(0)
        begun = self.search.trial(architecture, number).facts
        changes = begun.get("changes") or self.drawers[architecture.name].changes(number)
        chosen = self.search.begin(architecture, number, changes, place.pool)
        self.under_way[trial_id] = chosen, place
        root = architecture.job.data.root
        return _about(place) | {
            "search": str(self.search.folder),
            "trial": str(chosen.run.folder),
            "root": root and str(data_root(root)),  # other machines have other working folders
            "environment": {"RAYCNN_DATA": str(data_root()), "RAYCNN_CACHE": str(cache_folder())},
        }

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        ended, place = self.under_way.pop(trial_id)
        self.room.give_back(place)
        self.hopeless = self.hopeless or (result or {}).get("hopeless", "")
        reason = LOST if error else (result or {}).get("refused")
        if reason and not ended.ended:
            ended.note(state="failed", reason=reason)
        self._tell(ended)
        under_way = {one.id for one, _ in self.under_way.values()}
        self.waiting = [
            (a, number)
            for a, number in next_trials(self.search)
            if self.search.trial(a, number).id not in under_way
        ]

    def look_at(self, living: list[Node], note: Callable[[str], None]) -> None:
        """Have trials that were lost with their nodes wait no longer than allowed for others."""
        self.room.see(living)
        under_way = list(self.under_way.values())
        stuck = [
            place.ask
            for one, place in under_way
            if not self.room.could_hold(place.ask) and one.run.state() != "running"
        ]
        if not under_way and self.waiting:
            asks = [ask for _, ask in self.room.kinds]
            stuck = [] if any(map(self.room.could_hold, asks)) else asks[:1]
        if not stuck:
            self._stuck_since = None
            return
        said = f"no node is left with room for a trial, {connection.in_words(stuck[0])} each worker"
        patience_s = self.search.spec.architectures[0].job.workers.timeout_s
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()
            if not self.stop():
                note(f"waiting for {patience_s} s: {said}")
        late = time.monotonic() - self._stuck_since > patience_s
        if late:
            self.hopeless = said
        self.nobody_left = (late or self.stop()) and len(stuck) >= len(under_way)

    def _tell(self, ended: Trial) -> None:
        facts, course = ended.facts, ended.course(self.search.spec.tune)
        known = course.values and facts.get("state") != "failed"
        value = course.best(course.epochs) if known else None
        self.drawers[facts["architecture"]].tell(facts["changes"], value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of the search says it all."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it, for a restore that is not used


class _UnschedulableStopper(tune.Stopper):
    """Ends Tune when all that is under way waits for nodes that do not come."""

    def __init__(self, feed: _TrialSearcher):
        self.feed = feed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.feed.nobody_left


class _Kept(FIFOScheduler):
    """Has Tune keep an idle process for every place: of its own accord it keeps one in all.

    Those of a population are idle while the last of a generation is trained.
    """

    def __init__(self, places: list[Place]):
        super().__init__()
        self.idle = Counter(_resources(_about(place)) for place in places)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        while self.idle:
            tune_controller._tune_controller._actor_cache.increase_max(*self.idle.popitem())


def _fit(feed: _TrialSearcher, places: list[Place]) -> None:
    search = feed.search
    folder = search.folder / "logs" / "ray"
    shutil.rmtree(folder, ignore_errors=True)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # each trial says what became of it
    retries = max(a.job.failure.retries for a in search.spec.architectures)
    tuner = tune.Tuner(
        tune.with_resources(_trial, _resources),
        tune_config=tune.TuneConfig(
            search_alg=feed, scheduler=_Kept(places), num_samples=-1, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=_UnschedulableStopper(feed),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(sys.maxsize)  # the room is counted here
    with redirect_stdout(StringIO()):  # it greets also where it is to be silent
        tuner.fit()


def _about(place: Place) -> dict[str, Any]:
    return {"pool": place.pool.model_dump(), "ask": place.ask}


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Of Tune's own process: those of the trial, unless its workers are others and ask for them."""
    alone = config["pool"]["workers"] == 1
    return tune.PlacementGroupFactory([config["ask"] if alone else {HEAD: 0.001}])


def _trial(config: dict[str, Any]) -> dict[str, Any]:
    """In each of Tune's processes, once for every trial."""
    find_data(config["root"], config["environment"])
    search, one = Search(Path(config["search"])), Trial(Path(config["trial"]))
    pool = Pool(**config["pool"])
    if not one.run.folder.is_dir():
        return {"refused": f"its node does not see {one.run.folder}: storage.path must be shared"}
    search.count_from_here()
    deadline = search.deadline()
    if pool.workers == 1:
        hopeless = trial.train(one, lambda: trial.work_on(search, one, _device(pool), deadline))
    else:
        from raycnn.launch.ray import trainer  # imports what one worker has no need of

        kind = device.DEVICE_KINDS[pool.device]
        hopeless = trial.train(
            one, lambda: trainer.train_trial(search, one, kind, config["ask"], deadline)
        )
    return {"hopeless": hopeless} if hopeless else {}


def _device(pool: Pool) -> torch.device:
    return device.find(pool.device).select(0, pool.cpus)


@contextmanager
def _following(feed: _TrialSearcher, view: SearchView) -> Iterator[None]:
    """Show the trials, look at the nodes, and pass on a wish to stop."""

    def look_at_nodes() -> None:
        with suppress(RayError, RuntimeError):  # the next look may
            feed.look_at(connection.alive_nodes(), view.note)

    def look() -> None:
        under_way = [one for one, _ in list(feed.under_way.values())]
        if feed.stop():
            for one in under_way:
                one.run.request_stop()
        view.show(feed.search, [one.id for one in under_way])

    try:
        with poll_in_background(look_at_nodes, NODES_S), poll_in_background(look, LOOK_S):
            yield
    finally:
        view.show(feed.search, [])
