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
SETTLE_S = 3.0  # a shortage must last so long to be reported
GROW_S = 10.0  # room for more workers must last so long, and twice as long after a futile restart


class ResourceWatch:
    """Watches whether there is room for the workers of a job, and for more of them.

    Ray reports only the sum of free resources over all nodes, so that workers may still not fit.
    """

    def __init__(self, workers: Workers, ask: dict[str, float]):
        self.workers, self.ask = workers, ask
        self.gave_up: ClusterError | None = None
        """The error to raise, once the workers have been waited for too long."""
        self._short_since: float | None = None
        self._spare_since: float | None = None
        self._reported: int | None = None
        self._grow_s, self._grown_from = GROW_S, 0

    def wait_for_resources(
        self, on_event: Callable[[Event], None], stopped: Callable[[], bool]
    ) -> None:
        """Return once the workers fit into the free resources, or when stopped.

        Raises ClusterError when they still do not fit after `workers.timeout_s`.
        """
        while self._count(free_resources()) < self.workers.min_count and not stopped():
            if event := self._wait(self._count(free_resources())):
                on_event(event)
            if self.gave_up:
                raise self.gave_up
            time.sleep(0.5)
        self._short_since = self._reported = None

    def poll(self, training: int) -> Event | None:
        """Return an event when the workers lack room, or when more of them would fit, else None.

        `training` is the number of workers that train; 0 while they start or wait for a node.
        """
        if training:
            self._short_since = self._reported = None
            return self._grow(training)
        count = self._count()
        if count >= self.workers.min_count:
            self._short_since = self._reported = None
            return None
        return self._wait(count)

    def _count(self, free: dict[str, float] | None = None) -> int:
        """Return how many workers fit into the nodes, or into their free resources."""
        count = capacity(alive_nodes(), self.ask)
        if free is not None:
            count = min(count, Node("", free).fits(self.ask))
        return min(count, self.workers.max_count)

    def _wait(self, count: int) -> Event | None:
        now = time.monotonic()
        self._short_since = self._short_since or now
        waited_s, limit_s = now - self._short_since, self.workers.timeout_s
        reason = (
            f"there is room for {count} of at least {self.workers.min_count} workers of "
            f"{format_resources(self.ask)} each"
        )
        if waited_s > limit_s:
            self.gave_up = ClusterError(f"{reason} in {limit_s} s (workers.timeout_s)")
        if waited_s < SETTLE_S or self._reported == count:
            return None
        self._reported = count
        return WaitingForResources(reason=reason)

    def _grow(self, training: int) -> Event | None:
        """Return an event to restart with more workers, if there has been room for a while."""
        nodes, free = alive_nodes(), Node("", free_resources()).fits(self.ask)
        most = min(training + free, capacity(nodes, self.ask), self.workers.max_count)
        now = time.monotonic()
        if most <= training:
            self._spare_since = None
            return None
        self._spare_since = self._spare_since or now
        if self._grown_from != training:
            self._grow_s = GROW_S
        if now - self._spare_since < self._grow_s:
            return None
        self._spare_since, self._grown_from, self._grow_s = None, training, 2 * self._grow_s
        return RestartPlanned(reason=f"there is room for {most} workers")


def free_resources() -> dict[str, float]:
    """Return the free resources of the cluster, summed over all nodes."""
    return dict(ray.available_resources())
