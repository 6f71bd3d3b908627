"""How many workers a job on Ray has: as many as there is room for, within what it asks for.

Ray's own policy asks a coordinator, an actor that looks every 20 s and knows of a lost node when
its head does, 15 s after it went. This one looks itself, and has the workers save before there are
more of them, or before a node of theirs is taken away.
"""

import socket
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from ray._private import state as cluster_state
from ray._raylet import RAY_NODE_ID_KEY
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import (
    Worker,
    WorkerGroupPollStatus,
    WorkerGroupState,
)

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError, Interrupted
from raycnn.launch.ray.connection import Node, capacity, in_words
from raycnn.runs.directory import POLL_INTERVAL_S, Run
from raycnn.training.callbacks import Event, RestartPlanned, WaitingForResources, WorldResized

ANSWER_S = 1  # of a node that is alive
SETTLE_S = 1  # room that stays the same for so long is all there is
GROW_S = 5  # between two looks for room for more
NOTICE_S = 1  # between two looks for nodes that are to go

_asked = False


def asked() -> bool:
    """In a worker: whether it is to save and make way for another group."""
    return _asked


def _ask() -> None:
    global _asked
    _asked = True


class Elastic(ScalingPolicy):
    """The number of workers of a run, at its start, after each loss, and while it trains."""

    def __init__(self, config: ScalingConfig, workers: Workers, run: Run):
        super().__init__(config)
        self.workers, self.run = workers, run
        self.ask = config._resources_per_worker_not_none
        self.count = workers.most
        self.standing: dict[str, Node] = {}
        """The nodes that answer, by their ids, with what is left of each."""
        self.going: set[str] = set()
        """The ids of the nodes that will be taken away."""
        self._asking = False
        self._looked, self._seen = 0.0, 0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        count, self._asking = self._room_in_time(), False
        if count != self.count:
            self.tell(WorldResized(workers=count, wanted=self.workers.asked))
        self.count, self._looked, self._seen = count, time.monotonic(), count
        return ResizeDecision(count, self.ask)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Have the workers save, and start again, for a node that is to go, or for more of them."""
        workers = worker_group_state.workers
        if not self._asking and (why := self._leaving(workers) or self._more_room()):
            self._asking = True
            self.tell(RestartPlanned(reason=why))
            workers[0].execute_async(_ask)
        return NoopDecision()

    def is_planned_restart(self, failures: Collection[Exception]) -> bool:
        """Whether the workers ended because they were asked to here, and for nothing else."""
        stopped = bool(failures) and all(isinstance(why, Interrupted) for why in failures)
        return self._asking and stopped and not self.run.stop_requested()

    def look_for_notices(self) -> None:
        """Ask Ray which nodes will be taken away (a preemption).

        Not in the thread that trains: without a head Ray takes a minute to answer.
        """
        with suppress(RayError, RuntimeError):  # the next look may
            self.going = set(cluster_state.state.get_draining_nodes())

    def tell(self, event: Event) -> None:
        with suppress(OSError):  # a full disk
            self.run.add_event(event)

    def on_controller_start_worker_group(self, **about: Any) -> dict[str, str]:
        """Keep the workers from a node that is gone and that Ray does not know of yet."""
        return {RAY_NODE_ID_KEY: f"in({','.join(self.standing)})"}

    def after_controller_start(self, train_run_context: Any) -> None:
        """Not Ray's, which starts the coordinator."""

    def _get_num_workers_for_resource_request(self) -> int:
        return self.workers.most

    def _room_in_time(self) -> int:
        """How many workers can start: the most, or as many as there is room for in a while.

        Raises ClusterError when not even the least fit in time, Interrupted when asked to stop.
        """
        began = changed = time.monotonic()
        found = told = -1
        while (count := min(self._room(), self.workers.most)) < self.workers.most:
            now = time.monotonic()
            if count != found:
                found, changed = count, now
            settled, wanted = now - changed > SETTLE_S, self._wanted(count)
            if settled and count >= self.workers.least:
                return count
            if now - began > self.workers.timeout_s:
                raise ClusterError(f"{wanted} in {self.workers.timeout_s} s (workers.timeout_s)")
            if self.run.stop_requested():
                raise Interrupted(f"stopped on request: `raycnn resume {self.run.folder}` goes on")
            if settled and told != count:
                self.tell(WaitingForResources(reason=wanted))
                told = count
            time.sleep(POLL_INTERVAL_S)
        return count

    def _leaving(self, workers: list[Worker]) -> str | None:
        """Whether a node of the workers will be taken away, in words."""
        for place in (worker.metadata for worker in workers):
            if place.node_id in self.going:
                return f"node {place.node_ip} is draining"
        return None

    def _more_room(self) -> str | None:
        """Whether there has been room for more workers since the last look, in words."""
        now = time.monotonic()
        if self.count == self.workers.most or now - self._looked < GROW_S:
            return None
        seen, self._looked, self._seen = self._seen, now, self.count + self._room()
        if seen > self.count and self._seen >= seen:
            return f"there is room for {min(seen, self.workers.most)} workers"
        return None

    def _wanted(self, count: int) -> str:
        least, each = self.workers.least, in_words(self.ask)
        return f"there is room for {count} of at least {least} workers of {each} each"

    def _room(self) -> int:
        """For how many workers more, beside all that runs."""
        left = cluster_state.available_resources_per_node()
        self.standing = {
            node["NodeID"]: Node(node["NodeManagerAddress"], left.get(node["NodeID"], {}))
            for node in cluster_state.nodes()
            if node["Alive"] and node["NodeID"] not in self.going and _answers(node)
        }
        return capacity(list(self.standing.values()), self.ask)


def _answers(node: dict[str, Any]) -> bool:
    try:
        where = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(where, ANSWER_S).close()
    except OSError:
        return False
    return True
