"""Signs of life of each worker, and from them: which worker was unresponsive, and why one ended.

heartbeats/
    rank-N.json     where the worker was last, and its error
    rank-N.stack    stacks of its threads (faulthandler), once it has been silent for long
"""

import faulthandler
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from raycnn import io
from raycnn.errors import first_line
from raycnn.runtime import distributed
from raycnn.training import loop
from raycnn.training.callbacks import Decoding, Event, Progress

FOLDER = "heartbeats"
STACK_SHARE = 0.7  # of the time that others wait for a worker: then its stacks are written
FRAMES = 6  # of a stack that a message shows

Failure = Literal["", "error", "timeout", "peer_lost"]


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a worker."""

    rank: int
    pid: int
    time: float
    """Seconds since 1970."""
    epoch: int = 0
    """Under way, counted from 1; 0 before the first."""
    step: int = 0
    """Steps of it that are done."""
    failure: Failure = ""
    """`error`: one of its own; `timeout`, `peer_lost`: it waited for, or lost, another worker."""
    error: str = ""


def failure_of(error: BaseException) -> tuple[Failure, str]:
    """Return the kind of a worker's failure, and its error on one line."""
    if isinstance(error, RuntimeError) and distributed.is_peer_loss(error):
        return ("timeout" if distributed.is_timeout(error) else "peer_lost"), first_line(error)
    known = first_line(error)
    return "error", known if hasattr(error, "exit_code") else f"{type(error).__name__}: {known}"


class Channel(Protocol):
    """How a worker and whoever started it hear of one another, while and when training ends."""

    def heartbeat(self, epoch: int, step: int) -> None:
        """Give a sign of life. Called a few times a second at most."""

    def failed(self, error: BaseException) -> None:
        """Tell the others why this worker ends."""

    def diagnose(self) -> str:
        """Return which worker ended, or was unresponsive, and why, once all had time to tell."""

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop. Called at every step."""


class HeartbeatSender:
    """Callback that gives a sign of life over a channel."""

    def __init__(self, channel: Channel):
        self.channel = channel

    def on_event(self, event: Event) -> None:
        match event:
            case Progress():
                self.channel.heartbeat(event.epoch, event.step)
            case Decoding():
                self.channel.heartbeat(0, event.done)


class Stacks:
    """Has faulthandler write this process's stacks into a file unless it is kept alive."""

    def __init__(self, path: Path, timeout_s: float):
        self.timeout_s = STACK_SHARE * timeout_s
        try:
            path.parent.mkdir(exist_ok=True)
            self.file: TextIO | None = path.open("w")
        except OSError:
            self.file = None
        self.alive()

    def alive(self) -> None:
        if self.file:
            faulthandler.dump_traceback_later(self.timeout_s, file=self.file)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self.file:
            self.file.close()


def training_stack(dump: str) -> str:
    """Return the innermost frames of the training thread in the last dump of faulthandler's.

    Empty where the process could not write one: it was stopped, or is gone.
    """
    threads = dump.rpartition("Timeout (")[2].split("Thread 0x")
    training = next((thread for thread in threads if str(loop.__file__) in thread), "")
    return "\n".join(training.splitlines()[1 : 1 + FRAMES])


def explain(
    beats: Mapping[int, Heartbeat],
    world_size: int,
    timeout_s: float,
    stack: Callable[[int], str] = lambda rank: "",
) -> str:
    """Return which worker ended first, or was unresponsive, and why, for people.

    `beats` has the last heartbeat of each rank that gave one, `stack` the stacks of a rank.
    """
    for rank, beat in sorted(beats.items()):
        if beat.failure == "error":
            return f"rank {rank} failed: {beat.error}"
    if not any(beat.failure == "timeout" for beat in beats.values()):
        return "another worker exited without an error: killed, or its machine is down"
    silent = [rank for rank in range(world_size) if rank not in beats or not beats[rank].failure]
    named = ", ".join(f"rank {rank}" for rank in silent) or "the network between the workers"
    stacks = [f"\nstack of rank {rank}:\n{at}" for rank in silent if (at := stack(rank))]
    return f"{named} was unresponsive for {timeout_s} s (workers.timeout_s)" + "".join(stacks)


def new_heartbeat(**fields: Any) -> Heartbeat:
    """Return a heartbeat of this worker, now."""
    return Heartbeat(rank=distributed.rank(), pid=os.getpid(), time=time.time(), **fields)


def refreshed(beat: Heartbeat, **fields: Any) -> Heartbeat:
    return replace(beat, time=time.time(), **fields)


def write_heartbeat(folder: Path, beat: Heartbeat) -> None:
    """Put a worker's heartbeat into its run folder. Raises OSError where the disk refuses."""
    (folder / FOLDER).mkdir(exist_ok=True)
    io.write_json(folder / FOLDER / f"rank-{beat.rank}.json", asdict(beat))


def read_heartbeats(folder: Path) -> dict[int, Heartbeat]:
    """Return the last heartbeat of each rank in a run folder."""
    found = {}
    for path in (folder / FOLDER).glob("rank-*.json"):
        try:
            beat = Heartbeat(**(io.read_json(path) or {}))
        except TypeError:  # torn, or another version's
            continue
        found[beat.rank] = beat
    return found
