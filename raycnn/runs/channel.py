"""The channel between a worker and its launcher if both have access to the run folder."""

import time
from collections.abc import Callable
from contextlib import suppress

from raycnn.runs.directory import STOP_POLL_INTERVAL_S, Run
from raycnn.runs.heartbeats import (
    FOLDER,
    HangWatchdog,
    diagnose_failure,
    failure_of,
    new_heartbeat,
    training_stack,
    update_heartbeat,
)
from raycnn.runtime import distributed

SETTLE_S = 3  # seconds for the other workers to report why they ended


class FolderChannel:
    """Heartbeats, failures and stop requests as files in the run folder.

    `stop_requested` reports requests to this process only, such as a signal.
    """

    def __init__(
        self, run: Run, timeout_s: int, stop_requested: Callable[[], bool] = lambda: False
    ):
        self.run, self.timeout_s, self.stop_requested = run, timeout_s, stop_requested
        self._stop, self._checked = False, 0.0
        self._beat = new_heartbeat()
        self._watchdog = None
        if distributed.world_size() > 1:  # a single worker has no others that wait for it
            path = run.folder / FOLDER / f"rank-{distributed.rank()}.stack"
            self._watchdog = HangWatchdog(path, timeout_s)
            self._send()

    def close(self) -> None:
        """Stop monitoring this process."""
        if self._watchdog:
            self._watchdog.close()

    def heartbeat(self, epoch: int, step: int) -> None:
        """Write a heartbeat with the current epoch and step."""
        if self._watchdog:
            self._watchdog.reset_timer()
            self._beat = update_heartbeat(self._beat, epoch=epoch, step=step)
            self._send()

    def failed(self, error: BaseException) -> None:
        """Report the error that ends this worker."""
        if self._watchdog:
            failure, text = failure_of(error)
            self._beat = update_heartbeat(self._beat, failure=failure, error=text)
            self._send()

    def diagnose(self) -> str:
        """Return which worker failed first or was unresponsive, and why."""
        time.sleep(SETTLE_S)
        return diagnose_failure(
            self.run.heartbeats(),
            distributed.world_size(),
            self.timeout_s,
            lambda rank: training_stack(self.run.stack(rank)),
        )

    def should_stop(self) -> bool:
        """Return whether this worker was asked to save and stop; rank 0 polls the folder."""
        now = time.monotonic()
        if distributed.rank() == 0 and now - self._checked > STOP_POLL_INTERVAL_S:
            self._checked, self._stop = now, self.run.stop_requested()
        requested = self.stop_requested()  # called on every worker, because it may be a barrier
        return self._stop or requested

    def _send(self) -> None:
        with suppress(OSError):  # the heartbeat is lost on a full disk
            self.run.write_heartbeat(self._beat)
