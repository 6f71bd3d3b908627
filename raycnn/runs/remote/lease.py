"""The lease of a run at a URI: one machine trains it at a time.

A trainer rewrites its lease, a file, every few seconds. Another machine takes the lease over when
it has not changed for LEASE_S.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raycnn.background import run_in_background
from raycnn.errors import EnvironmentUnavailable
from raycnn.filesystem import RemoteFile, RemoteFolder, filesystem_errors
from raycnn.paths import cache_folder

LEASE, CLOCK = ".lease", ".clock"
LEASE_S = 60.0  # seconds without a renewal after which a lease expires
RENEW_S = 10.0  # seconds between renewals of a lease


class Lease:
    """The right of this machine to train the run in a remote folder."""

    def __init__(self, remote: RemoteFolder, poll_s: float):
        self.remote, self.poll_s = remote, poll_s
        self.listed: list[RemoteFile] | None = None
        """The lease files as a list of runs has just found them; None: not listed."""
        self._name = ""

    def acquire(self) -> None:
        """Acquire the lease once all others have expired.

        Raises EnvironmentUnavailable if another machine renews its lease or acquires one first.
        """
        self._name = f"{LEASE}/{_machine_id()}"
        previous: list[RemoteFile] = []
        while others := self._others():
            if previous and others != previous:
                raise self._error(others)
            if self._have_expired(others):
                for file in others:
                    self.remote.delete(file.name)
                break
            previous = others
            time.sleep(self.poll_s)
        self.remote.write(self._name, f"{socket.gethostname()}, process {os.getpid()}".encode())
        if others := self._others():
            self.remote.delete(self._name)
            raise self._error(others)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew the lease in a background thread, and release it at the end of the block."""
        try:
            with run_in_background(self._renew):
                yield
        finally:
            with suppress(*filesystem_errors()):  # a lease that is not deleted expires
                self.remote.delete(self._name)

    def is_held(self) -> bool:
        """Return whether a machine holds a lease that has not expired."""
        with suppress(*filesystem_errors()):
            files = self.remote.files(LEASE) if self.listed is None else self.listed
            renewals = [file.modified_ns / 1e9 for file in files]
            return any(time.time() - seconds < LEASE_S for seconds in renewals)
        return False

    def holders(self) -> set[str]:
        """Return the names of all lease files, expired ones included."""
        return {file.name for file in self.remote.files(LEASE)}

    def _others(self) -> list[RemoteFile]:
        return [file for file in self.remote.files(LEASE) if file.name != self._name]

    def _have_expired(self, leases: list[RemoteFile]) -> bool:
        # Modification times are those of the storage's clock, so a new file tells the time there.
        now = self.remote.write(CLOCK, b"")
        newest = max(file.modified_ns for file in leases)
        return now.modified_ns - newest > LEASE_S * 1e9

    def _error(self, leases: list[RemoteFile]) -> EnvironmentUnavailable:
        """Return the error that another machine holds the lease."""
        holder = "another process"
        with suppress(*filesystem_errors()):
            holder += f" ({self.remote.read(leases[0].name).decode()})"
        return EnvironmentUnavailable(f"{self.remote.uri} is being trained by {holder}")

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_S):
            with suppress(*filesystem_errors()):  # the next renewal may succeed
                if self.remote.file(self._name):
                    self.remote.write(self._name, self.remote.read(self._name))


def _machine_id() -> str:
    """Return a random id for this machine, stored next to its working copies."""
    path = cache_folder() / "remote" / "machine"
    if not path.exists():
        temporary = path.with_name(f".machine.{secrets.token_hex(4)}")
        temporary.write_text(secrets.token_hex(16))
        with suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text()
