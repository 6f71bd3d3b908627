"""The channel between the driver of a job on Ray and its workers: one small actor.

Workers send it events, heartbeats and errors; the driver reads these, and leaves requests. The
actor also counts restarts: see retries.py. Its process imports this file, which imports neither
torch nor Ray Train, so that it starts fast.
"""

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycnn.errors import RaycnnError, WorkerLost
from raycnn.launch.ray.retries import Retries
from raycnn.training.callbacks import Event, WorldResized

Request = Literal["", "stop", "restart", "end"]
"""A request to the workers: save and end; save and restart as another group; end at once."""
NO_ERROR = "another worker exited without an error: killed, or its machine is down"


class PeerLost(Exception):
    """Raised when another worker is lost, to have Ray restart all workers."""


class PlannedRestart(Exception):
    """Raised when the workers have saved, to have Ray start another group of them."""


class Member(NamedTuple):
    """The properties of a worker that the other workers of its group need."""

    node: str
    """Ray's id of its node."""
    address: str
    """The IP address of its node."""
    port: int
    """A free port of its node; that of rank 0 is the rendezvous."""
    accelerators: list[str]
    """The ids of its devices, as Ray assigned them."""


class JoinedGroup(NamedTuple):
    """The group that a worker has joined, once all its workers have."""

    members: list[Member]
    """All workers, in the order of their ranks."""
    micro_batch: int | None
    """The largest micro-batch to try, where a device of an earlier group ran out of memory."""


@dataclass
class Outcome:
    """The end of a job: the return value of rank 0, or the error to raise."""

    value: Any = None
    error: RaycnnError | None = None


@dataclass
class Group:
    """The workers that Ray started together, and how they ended."""

    id: str
    size: int
    members: dict[int, Member] = field(default_factory=dict)
    beats: dict[int, dict[str, Any]] = field(default_factory=dict)
    stacks: dict[int, str] = field(default_factory=dict)
    saved: bool = False
    """Whether the workers have saved and ended on request."""
    out_of_memory: bool = False
    """Whether a device ran out of memory, so that the next group takes a smaller micro-batch."""
    errors: dict[int, str] = field(default_factory=dict)
    """The error of each rank that ended with one."""
    ended: bool = False

    @property
    def complete(self) -> bool:
        return len(self.members) == self.size

    @property
    def workers(self) -> list[Member]:
        """All members in the order of their ranks."""
        return [self.members[rank] for rank in sorted(self.members)]


class ChannelUpdate(NamedTuple):
    """New events for the driver, and the current state."""

    events: list[tuple[Event, bool]]
    """Events, each with whether the driver must store it: workers store their own."""
    transient: Event | None
    """The latest transient event, such as progress."""
    workers: list[Member]
    """The workers that are training; empty while a group starts."""
    outcome: Outcome | None


class ChannelActor:
    """The actor that passes events, heartbeats and requests between workers and their driver."""

    def __init__(self, retries: int, size: int, wanted: str):
        """Expect at most `size` workers (`wanted` in messages), and allow `retries` losses."""
        self.retries, self.size, self.wanted = Retries(retries), size, wanted
        self.events: list[tuple[Event, bool]] = []
        self.transient: Event | None = None
        self.request: Request = ""
        self.group: Group | None = None
        self.outcome: Outcome | None = None
        self.micro_batch: int | None = None
        """The largest micro-batch for later groups, after a device ran out of memory."""
        self.joined = asyncio.Condition()

    # Called by the driver.

    async def update(self, seen: int) -> ChannelUpdate:
        group = self.group
        workers = group.workers if group and group.complete and not group.ended else []
        transient, self.transient = self.transient, None
        return ChannelUpdate(self.events[seen:], transient, workers, self.outcome)

    async def set_request(self, request: Request) -> None:
        """Set the request to the workers, unless a stronger one is pending."""
        if not (self.request in ("stop", "end") and request == "restart"):
            self.request = request

    async def end(self, outcome: Outcome) -> Outcome:
        """Set the outcome of the job unless it has one; return the outcome."""
        self.outcome = self.outcome or outcome
        return self.outcome

    # Called by Ray's controller.

    async def workers_failed(self, errors: dict[int, str], preempted: bool) -> None:
        """End the current group, some of whose ranks ended with these errors."""
        if self.group:
            self.group.errors.update(errors)
            self._close_group(self.group, preempted)

    # Called by the workers.

    async def join(
        self, group_id: str, rank: int, size: int, member: Member
    ) -> JoinedGroup | Outcome:
        """Return the group once all its workers have joined, or the outcome of an ended job."""
        if self.group is None or self.group.id != group_id:
            if self.group:
                self._close_group(self.group)
            if self.request == "restart":
                self.request = ""
            self.group = Group(group_id, size)
        if self.outcome:
            return self.outcome
        group = self.group
        group.members[rank] = member
        async with self.joined:
            self.joined.notify_all()
            await self.joined.wait_for(lambda: group.complete or group is not self.group)
        if self.outcome:
            return self.outcome
        if rank == 0 and size != self.size:
            self.size = size
            self.events.append((WorldResized(workers=size, wanted=self.wanted), True))
        return JoinedGroup(group.workers, self.micro_batch)

    async def add_event(self, event: Event, to_store: bool = False) -> None:
        if event.transient:
            self.transient = event
        else:
            self.events.append((event, to_store))

    async def beat(self, group_id: str, rank: int, beat: dict[str, Any], stack: str) -> Request:
        """Record a heartbeat; return the current request."""
        if self.group and self.group.id == group_id:
            self.group.beats[rank] = beat
            if stack:
                self.group.stacks[rank] = stack
        return "end" if self.outcome else self.request

    async def beats(self) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Return the last heartbeat of each rank, and the stacks of unresponsive ranks."""
        return (self.group.beats, self.group.stacks) if self.group else ({}, {})

    async def saved(self) -> None:
        if self.group:
            self.group.saved = True

    async def limit_micro_batch(self, micro_batch: int) -> None:
        """Limit the micro-batch of later groups, where this is smaller than any limit before."""
        if self.group and micro_batch < (self.micro_batch or math.inf):
            self.micro_batch = micro_batch
            self.group.out_of_memory = True

    async def get_request(self) -> Request:
        return self.request

    async def get_outcome(self) -> Outcome | None:
        return self.outcome

    def _close_group(self, group: Group, preempted: bool = False) -> None:
        """Record why a group ended, and count it as a retry if it was unplanned; once per group."""
        is_unplanned = not (group.ended or group.saved or self.outcome)
        group.ended = True
        if not is_unplanned:
            return
        rank, error = min(group.errors.items(), default=(None, NO_ERROR))
        text = error if rank is None else f"rank {rank}: {error}"
        try:
            restarted = self.retries.count_restart(
                text, preempted=preempted, out_of_memory=group.out_of_memory
            )
        except WorkerLost as lost:
            self.outcome = Outcome(error=lost)
        else:
            self.events.append((restarted, True))


def open_channel(retries: int, size: int, wanted: str) -> Any:
    """Start the channel's actor on the driver's node, so that both end together."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(ChannelActor).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(retries, size, wanted)
