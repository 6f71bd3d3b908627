"""The worker's side of the channel of a job on Ray; channel_actor.py is the actor."""

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from time import monotonic
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayError

from raycnn.errors import OutOfMemory, RaycnnError
from raycnn.launch.ray import compat
from raycnn.launch.ray.channel_actor import JoinedGroup, Member, Outcome, Request
from raycnn.runs.directory import STOP_POLL_INTERVAL_S, Run
from raycnn.runs.heartbeat_channel import HeartbeatChannel
from raycnn.runs.heartbeats import Heartbeat
from raycnn.training.callbacks import Event, RestartPlanned

GRACE_S = 10  # for a worker to end by itself when the job is over
NOTICE_STEPS = 32  # steps between two checks for a preemption notice


class WorkerChannel(HeartbeatChannel):
    """Heartbeats, failures, events and requests of one worker, through the channel's actor.

    A background thread sends heartbeats and receives the driver's requests, even while training
    blocks.
    """

    def __init__(self, actor: Any, timeout_s: int):
        super().__init__(timeout_s)
        context = ray.train.get_context()
        self.actor = actor
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.group = ray.get_runtime_context().get_placement_group_id()
        self.request: Request = ""
        self._run: Run | None = None
        self._notice, self._steps = compat.preemption_notice(), 0
        self._closed = threading.Event()
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def close(self) -> None:
        """Stop heartbeats and monitoring this process."""
        self._closed.set()
        super().close()

    def join(self, own: Member) -> JoinedGroup | Outcome:
        """Return the group once all workers have joined, or the outcome of an ended job."""
        joining = self.actor.join.remote(self.group, self.rank, self.size, own)
        joined: JoinedGroup | Outcome = ray.get(joining)
        return joined

    def watch(self, run: Run) -> None:
        """Start heartbeats, and stack dumps when this worker is unresponsive."""
        super().watch(run)
        self._run = run

    def on_event(self, event: Event) -> None:
        self.actor.add_event.remote(event)

    def failed(self, error: BaseException) -> None:
        """Report the error that ends this worker, and a smaller micro-batch for the next group."""
        if isinstance(error, OutOfMemory):
            ray.get(self.actor.limit_micro_batch.remote(error.micro_batch))
        super().failed(error)

    def should_stop(self) -> bool:
        """Return whether to save and stop: on request, or on a preemption notice."""
        # Reading the notice is a barrier: it must not depend on a request, which reaches one worker
        # before another, but on the number of steps, which is equal on all of them.
        self._steps += 1
        if self._steps % NOTICE_STEPS == 0 and self._notice() and not self.request:
            self.request = "restart"
            if self.rank == 0:
                planned = RestartPlanned(reason="a node of the workers is draining")
                self.actor.add_event.remote(planned, True)
        return bool(self.request)

    def is_restarting(self) -> bool:
        """Return whether the workers have stopped for a restart as another group."""
        # Another worker may have received a request that this one has not.
        return self.request == "restart" or ray.get(self.actor.get_request.remote()) == "restart"

    def report_saved(self) -> None:
        """Report that this worker has saved, and ends for a restart as another group."""
        ray.get(self.actor.saved.remote())

    def end(self, outcome: Outcome) -> None:
        """Set the outcome of the job, unless it has one."""
        ray.get(self.actor.end.remote(outcome))

    def fail(self, error: RaycnnError) -> None:
        self.end(Outcome(error=error))

    def outcome(self) -> Outcome | None:
        """Return the outcome of the job, or None if it has not ended."""
        outcome: Outcome | None = ray.get(self.actor.get_outcome.remote())
        return outcome

    def _send_heartbeats(self) -> None:
        ended_at = None
        while not self._closed.wait(STOP_POLL_INTERVAL_S):
            self._send()
            if self.request == "end":
                ended_at = ended_at or monotonic()
                if monotonic() - ended_at > GRACE_S:
                    os._exit(1)  # it may be blocked in a collective with an ended worker

    def _send(self) -> None:
        stack = self._run.stack(self.rank) if self._run else ""
        beat = asdict(self._beat) if self._beat else {}
        try:
            sent = self.actor.beat.remote(self.group, self.rank, beat, stack)
            request: Request = ray.get(sent, timeout=self.timeout_s)
        except ActorDiedError:  # the driver has ended
            request = "end"
        except RayError:  # the next heartbeat may succeed
            return
        if request:
            self.request = request

    def _reports(self) -> tuple[dict[int, Heartbeat], Callable[[int], str]]:
        beats, stacks = ray.get(self.actor.beats.remote())
        known = {rank: Heartbeat(**beat) for rank, beat in beats.items() if beat}
        return known, lambda rank: stacks.get(rank, "")
