"""Watch the capacity of a cluster before a job starts, while it waits, and while it trains."""

import time
from collections.abc import Callable

import ray

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError
from raycnn.launch.ray.connection import alive_nodes
from raycnn.launch.ray.resources import Node, capacity, format_resources
from raycnn.training.callbacks import Event, RestartPlanned, WaitingForResources

WATCH_INTERVAL_S = 2.0  # polling interval
SETTLE_S = 3.0  # seconds that a shortage must persist to be reported
# Capacity must persist for GROW_S seconds, doubled after each unsuccessful restart.
GROW_S = 10.0


class ResourceWatch:
    """Watches whether there is room for the workers of a job, and for more of them.

    Ray reports only the sum of free resources over all nodes, so that workers may still not fit.
    """

    def __init__(self, workers: Workers, worker_resources: dict[str, float]):
        self.workers, self.worker_resources = workers, worker_resources
        self.error: ClusterError | None = None
        """The error to raise, once the workers have been waited for too long."""
        self._shortage_since: float | None = None
        self._surplus_since: float | None = None
        self._reported: int | None = None
        self._grow_s, self._grown_from = GROW_S, 0

    def wait_for_resources(
        self, on_event: Callable[[Event], None], stopped: Callable[[], bool]
    ) -> None:
        """Return once the workers fit into the free resources, or when stopped.

        Raises ClusterError when they still do not fit after `workers.timeout_s`.
        """
        while not stopped():
            count = min(self._capacity(), self._free_capacity())
            if count >= self.workers.min_count:
                break
            if event := self._wait(count):
                on_event(event)
            if self.error:
                raise self.error
            time.sleep(0.5)
        self._shortage_since = self._reported = None

    def poll(self, training: int) -> Event | None:
        """Return an event when the workers lack room, or when more of them would fit, else None.

        `training` is the number of workers that train; 0 while they start or wait for a node.
        """
        if not training and (count := self._capacity()) < self.workers.min_count:
            return self._wait(count)
        self._shortage_since = self._reported = None
        return self._grow(training) if training else None

    def _capacity(self) -> int:
        """Return how many of the workers fit into the nodes, if these are free."""
        return min(capacity(alive_nodes(), self.worker_resources), self.workers.max_count)

    def _free_capacity(self) -> int:
        """Return how many workers at most fit into the free resources."""
        return Node("", free_resources()).fits(self.worker_resources)

    def _wait(self, count: int) -> Event | None:
        """Return an event, once, when only `count` workers fit; after the timeout set `error`."""
        now = time.monotonic()
        self._shortage_since = self._shortage_since or now
        waited_s, limit_s = now - self._shortage_since, self.workers.timeout_s
        reason = (
            f"there is room for {count} of at least {self.workers.min_count} workers of "
            f"{format_resources(self.worker_resources)} each"
        )
        if waited_s > limit_s:
            self.error = ClusterError(f"{reason} in {limit_s} s (workers.timeout_s)")
        if waited_s < SETTLE_S or self._reported == count:
            return None
        self._reported = count
        return WaitingForResources(reason=reason)

    def _grow(self, training: int) -> Event | None:
        """Return an event to restart with more workers, if there has been room for a while."""
        most = min(training + self._free_capacity(), self._capacity())
        now = time.monotonic()
        if most <= training:
            self._surplus_since = None
            return None
        self._surplus_since = self._surplus_since or now
        if self._grown_from != training:
            self._grow_s = GROW_S
        if now - self._surplus_since < self._grow_s:
            return None
        self._surplus_since, self._grown_from, self._grow_s = None, training, 2 * self._grow_s
        return RestartPlanned(reason=f"there is room for {most} workers")


def free_resources() -> dict[str, float]:
    """Return the free resources of the cluster, summed over all nodes."""
    return dict(ray.available_resources())
