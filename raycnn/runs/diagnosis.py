"""The diagnosis of a failure: which worker failed or was unresponsive, why, and its stacks."""

import faulthandler
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from raycnn.errors import first_line
from raycnn.runs.heartbeats import FailureKind, Heartbeat
from raycnn.runtime import distributed
from raycnn.training import loop

STACK_SHARE = 0.7  # fraction of the timeout after which an unresponsive worker dumps its stacks
FRAMES = 6  # number of stack frames shown in a message


def failure_of(error: BaseException) -> tuple[FailureKind, str]:
    """Return the kind of a worker's failure, and its error as one line."""
    if isinstance(error, RuntimeError) and distributed.is_peer_loss(error):
        return ("timeout" if distributed.is_timeout(error) else "peer_lost"), first_line(error)
    message = first_line(error)
    if not hasattr(error, "exit_code"):  # the message of a bug may say little without its type
        message = f"{type(error).__name__}: {message}"
    return "error", message


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
