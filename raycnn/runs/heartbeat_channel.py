"""The channel that brings a worker's heartbeats and failures to the others, and requests to it.

Here are the interface of channels, the callback that sends heartbeats, and the channel through the
run folder, for workers that have access to it; launch/ray/worker_channel.py has the one through an
actor of Ray.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from raycnn.runs.diagnosis import HangWatchdog, diagnose_failure, failure_of, training_stack
from raycnn.runs.directory import STOP_POLL_INTERVAL_S, Run
from raycnn.runs.heartbeats import Heartbeat, stack_path, update_heartbeat
from raycnn.runtime import distributed
from raycnn.training.callbacks import Decoding, Event, Progress

SETTLE_S = 3  # seconds for the other workers to report why they ended


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


class HeartbeatChannel(ABC):
    """Heartbeats and failures of this worker, and from those of all workers a diagnosis."""

    def __init__(self, timeout_s: int):
        self.timeout_s = timeout_s
        self._beat: Heartbeat | None = None
        self._watchdog: HangWatchdog | None = None

    def watch(self, run: Run) -> None:
        """Start heartbeats, and stack dumps when this worker is unresponsive."""
        self._watchdog = HangWatchdog(stack_path(run.folder, distributed.rank()), self.timeout_s)
        self._beat = Heartbeat(distributed.rank(), os.getpid(), time.time())

    def close(self) -> None:
        """Stop monitoring this process."""
        if self._watchdog:
            self._watchdog.close()

    def heartbeat(self, epoch: int, step: int) -> None:
        """Update the heartbeat with the current epoch and step."""
        if self._watchdog and self._beat:
            self._watchdog.reset_timer()
            self._beat = update_heartbeat(self._beat, epoch=epoch, step=step)

    def failed(self, error: BaseException) -> None:
        """Report the error that ends this worker."""
        if self._beat:
            failure, text = failure_of(error)
            self._beat = update_heartbeat(self._beat, failure=failure, error=text)
        self._send()

    def diagnose(self) -> str:
        """Return which worker failed first or was unresponsive, and why."""
        time.sleep(SETTLE_S)
        beats, stack = self._reports()
        return diagnose_failure(
            beats,
            distributed.world_size(),
            self.timeout_s,
            lambda rank: training_stack(stack(rank)),
        )

    @abstractmethod
    def _send(self) -> None:
        """Send the heartbeat, if there is one."""

    @abstractmethod
    def _reports(self) -> tuple[dict[int, Heartbeat], Callable[[int], str]]:
        """Return the last heartbeat of each rank, and a function that returns a rank's stacks."""


class FolderChannel(HeartbeatChannel):
    """Heartbeats, failures and stop requests as files in the run folder.

    `stop_requested` reports requests to this process only, such as a signal.
    """

    def __init__(
        self, run: Run, timeout_s: int, stop_requested: Callable[[], bool] = lambda: False
    ):
        super().__init__(timeout_s)
        self.run, self.stop_requested = run, stop_requested
        self._stop, self._checked = False, 0.0
        if distributed.world_size() > 1:  # a single worker has no others that wait for it
            self.watch(run)
            self._send()

    def heartbeat(self, epoch: int, step: int) -> None:
        """Write a heartbeat with the current epoch and step."""
        super().heartbeat(epoch, step)
        self._send()

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop; rank 0 polls the folder."""
        now = time.monotonic()
        if distributed.rank() == 0 and now - self._checked > STOP_POLL_INTERVAL_S:
            self._checked, self._stop = now, self.run.stop_requested()
        requested = self.stop_requested()  # called on every worker, because it may be a barrier
        return self._stop or requested

    def _send(self) -> None:
        if self._beat:
            with suppress(OSError):  # the heartbeat is lost on a full disk
                self.run.write_heartbeat(self._beat)

    def _reports(self) -> tuple[dict[int, Heartbeat], Callable[[int], str]]:
        return self.run.heartbeats(), self.run.stack
