"""Upload the working copy of a run at a URI in the background, and retry while storage fails."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raycnn.errors import EnvironmentUnavailable, StorageUnavailable, first_line
from raycnn.filesystem import PERMANENT_ERRORS, filesystem_errors
from raycnn.runs.remote.manifest import STOP
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import Event, StorageReached, StorageUnreachable

if TYPE_CHECKING:
    from raycnn.runs.remote.working_copy import WorkingCopy

Index = dict[str, str | None]
"""The names of the `last`, `previous` and `best` checkpoint: see training/checkpoint_folder.py."""
EventCallback = Callable[[Event], None]

MAX_PAUSE_S = 15.0  # maximum seconds between retries


class Uploader:
    """A background thread that uploads a worker's files.

    Rank 0 uploads all files except the logs of other ranks, which upload only their own log.
    """

    def __init__(self, copy: "WorkingCopy", rank: int, timeout_s: float, on_event: EventCallback):
        self.copy, self.rank, self.timeout_s, self.on_event = copy, rank, timeout_s, on_event
        self.error: Exception | None = None
        self.has_pulled = False
        """Whether this worker has downloaded checkpoints; from then on rank 0 writes newer ones."""
        self._wake = threading.Condition()
        self._pending: Index | None = None
        self._closed = threading.Event()
        self._lease_holders: set[str] | None = None
        """Holders of the lease at the first upload, this machine among them."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Wait for the previous upload, then queue the current checkpoints."""
        self.wait()
        with self._wake:
            checkpoints = self.copy.checkpoints
            self._pending = checkpoint_folder.read_index(checkpoints) if self.rank == 0 else {}
            self._wake.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is queued; return False if the time was too short.

        Raises the error that ended uploading.
        """
        with self._wake:
            self._wake.wait_for(lambda: self._pending is None or self.error, timeout_s)
            done = self._pending is None
        if self.error:
            raise self.error
        return done

    def close(self) -> None:
        """Upload the remaining files and stop. Raises the error that ended uploading."""
        self._closed.set()
        with self._wake:
            self._wake.notify_all()
        self._thread.join()
        if self.error:
            raise self.error

    def give_up(self) -> None:
        """Stop without retrying uploads that fail."""
        self.timeout_s = 0
        self._closed.set()

    def _run(self) -> None:
        closed = False
        while not closed and not self.error:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._pending is not None or self._closed.is_set(),
                    self.copy.sync_interval_s,
                )
            closed, index = self._closed.is_set(), self._pending
            try:
                self.call_until_reachable("save a checkpoint", partial(self._upload, index))
            except Exception as error:  # `wait` and `close` raise it
                self.error = error
            with self._wake:
                if self._pending is index:
                    self._pending = None
                closed = closed and self._pending is None
                self._wake.notify_all()

    def _upload(self, index: Index | None) -> None:
        if self.rank == 0 and self._lease_holders is None:
            self._lease_holders = self.copy.lease.holders()
        self.copy.upload(index, self.rank, self._check_lease)
        if self.rank == 0 and self.copy.remote.file(STOP):
            (self.copy.folder / STOP).touch()

    def _check_lease(self) -> None:
        """Raise EnvironmentUnavailable if another machine has taken over the lease."""
        if self._lease_holders and not self._lease_holders & self.copy.lease.holders():
            raise EnvironmentUnavailable(
                f"another machine took over {self.copy.uri} because this one could not renew its "
                "lease; stopping"
            )

    def call_until_reachable(self, action: str, work: Callable[[], None]) -> None:
        """Call `work`, retrying while storage fails; `action` names it in messages.

        Raises StorageUnavailable after `timeout_s` seconds, or at once on a full disk.
        """
        start, pause, last_error = time.monotonic(), 1.0, ""
        while True:
            try:
                work()
                break
            except filesystem_errors() as error:
                if getattr(error, "errno", None) in PERMANENT_ERRORS:
                    raise StorageUnavailable(self._failure_message(action, error)) from None
                if not last_error:
                    event = StorageUnreachable(
                        uri=self.copy.uri, error=first_line(error), timeout_s=self.timeout_s
                    )
                    self.on_event(event)
                last_error = first_line(error)
            if time.monotonic() - start > self.timeout_s:
                reason = f"not reached for {self.timeout_s:g} s (storage.timeout_s): {last_error}"
                raise StorageUnavailable(self._failure_message(action, reason))
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
        if last_error:
            self.on_event(StorageReached(uri=self.copy.uri, waited_s=time.monotonic() - start))

    def _failure_message(self, action: str, reason: object) -> str:
        last = self.copy.remote_index.get("last")
        checkpoint_note = (
            f"the last valid checkpoint there is {last}" if last else "there is no checkpoint yet"
        )
        return (
            f"cannot {action}: storage.path: {self.copy.uri}: {reason}; {checkpoint_note}, and "
            f"`{self.copy.resume_command}` continues"
        )
