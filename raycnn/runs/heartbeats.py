"""Heartbeats of the workers, and from them which worker failed or was unresponsive, and why.

heartbeats/
    rank-N.json     last epoch and step of the worker, and its error
    rank-N.stack    stacks of its threads (faulthandler), once it has been unresponsive
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
STACK_SHARE = 0.7  # fraction of the timeout after which an unresponsive worker dumps its stacks
FRAMES = 6  # number of stack frames shown in a message

FailureKind = Literal["", "error", "timeout", "peer_lost"]


@dataclass(frozen=True)
class Heartbeat:
    """The last known state of a worker."""

    rank: int
    pid: int
    time: float
    """Seconds since 1970."""
    epoch: int = 0
    """Current epoch, from 1; 0 before the first."""
    step: int = 0
    """Steps completed in this epoch; images decoded, before the first."""
    failure: FailureKind = ""
    """`error`: its own error; `timeout` or `peer_lost`: caused by another worker."""
    error: str = ""
    """The error as one line; empty without a failure."""


def failure_of(error: BaseException) -> tuple[FailureKind, str]:
    """Return the kind of a worker's failure, and its error as one line."""
    if isinstance(error, RuntimeError) and distributed.is_peer_loss(error):
        return ("timeout" if distributed.is_timeout(error) else "peer_lost"), first_line(error)
    message = first_line(error)
    if not hasattr(error, "exit_code"):  # the message of a bug may say little without its type
        message = f"{type(error).__name__}: {message}"
    return "error", message


class Channel(Protocol):
    """The interface between a worker and its launcher, during training and at its end."""

    def heartbeat(self, epoch: int, step: int) -> None:
        """Send a heartbeat. Called at most a few times per second."""

    def failed(self, error: BaseException) -> None:
        """Report the error that ends this worker."""

    def diagnose(self) -> str:
        """Wait for the other workers' reports; return which failed or was unresponsive, and why."""

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop. Called at every step."""


class HeartbeatSender:
    """A callback that sends heartbeats over a channel."""

    def __init__(self, channel: Channel):
        self.channel = channel

    def on_event(self, event: Event) -> None:
        match event:
            case Progress():
                self.channel.heartbeat(event.epoch, event.step)
            case Decoding():
                self.channel.heartbeat(0, event.done)


class HangWatchdog:
    """A watchdog that dumps this process's stacks to a file if it hangs.

    The process counts as hung if `reset_timer` is not called for STACK_SHARE of the timeout.
    """

    def __init__(self, path: Path, timeout_s: float):
        self.timeout_s = STACK_SHARE * timeout_s
        try:
            path.parent.mkdir(exist_ok=True)
            self.file: TextIO | None = path.open("w")
        except OSError:
            self.file = None
        self.reset_timer()

    def reset_timer(self) -> None:
        """Restart the watchdog's timer."""
        if self.file:
            faulthandler.dump_traceback_later(self.timeout_s, file=self.file)

    def close(self) -> None:
        """Stop the watchdog."""
        faulthandler.cancel_dump_traceback_later()
        if self.file:
            self.file.close()


def stack_path(folder: Path, rank: int) -> Path:
    """Return the file of a run folder that a rank's stacks are dumped to."""
    return folder / FOLDER / f"rank-{rank}.stack"


def training_stack(dump: str) -> str:
    """Return the innermost frames of the training thread in the last faulthandler dump.

    Empty if the process was suspended or killed before it could write a dump.
    """
    threads = dump.rpartition("Timeout (")[2].split("Thread 0x")
    training = next((thread for thread in threads if str(loop.__file__) in thread), "")
    return "\n".join(training.splitlines()[1 : 1 + FRAMES])


def diagnose_failure(
    beats: Mapping[int, Heartbeat],
    world_size: int,
    timeout_s: float,
    stack: Callable[[int], str] = lambda rank: "",
) -> str:
    """Return a message about which worker failed first or was unresponsive, and why.

    `beats` has the last heartbeat of each rank that sent one; `stack` returns a rank's stacks.
    """
    for rank, beat in sorted(beats.items()):
        if beat.failure == "error":
            return f"rank {rank} failed: {beat.error}"
    # A worker that hangs makes others time out; one whose process ends only closes connections.
    if not any(beat.failure == "timeout" for beat in beats.values()):
        return "another worker exited without an error: killed, or its machine is down"
    failed = {rank for rank, beat in beats.items() if beat.failure}
    unresponsive = [rank for rank in range(world_size) if rank not in failed]
    ranks = ", ".join(f"rank {rank}" for rank in unresponsive)
    culprit = ranks or "the network between the workers"
    stacks = [
        f"\nstack of rank {rank}:\n{frames}" for rank in unresponsive if (frames := stack(rank))
    ]
    return f"{culprit} was unresponsive for {timeout_s} s (workers.timeout_s)" + "".join(stacks)


def new_heartbeat(**fields: Any) -> Heartbeat:
    """Return a heartbeat of this worker with the current time."""
    return Heartbeat(rank=distributed.rank(), pid=os.getpid(), time=time.time(), **fields)


def update_heartbeat(beat: Heartbeat, **fields: Any) -> Heartbeat:
    """Return a copy of a heartbeat with the current time and changed fields."""
    return replace(beat, time=time.time(), **fields)


def write_heartbeat(folder: Path, beat: Heartbeat) -> None:
    """Write a worker's heartbeat to the run folder. Raises OSError if writing fails."""
    (folder / FOLDER).mkdir(exist_ok=True)
    io.write_json(folder / FOLDER / f"rank-{beat.rank}.json", asdict(beat))


def read_heartbeats(folder: Path) -> dict[int, Heartbeat]:
    """Return the last heartbeat of each rank in a run folder."""
    beats = {}
    for path in (folder / FOLDER).glob("rank-*.json"):
        try:
            beat = Heartbeat(**(io.read_json(path) or {}))
        except TypeError:  # the file is truncated, or from another version
            continue
        beats[beat.rank] = beat
    return beats
