"""The files of a run at a URI: which are synchronized, and when each one last was."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from raycnn.errors import StorageUnavailable, first_line
from raycnn.filesystem import RemoteFile, filesystem_errors
from raycnn.io import lock, write_json
from raycnn.training.checkpoint_folder import INDEX

CHECKPOINTS, EVENTS, STOP, TRIALS = "checkpoints", "events.jsonl", ".stop", "trials"
CLAIM = ".claim"  # folder of the random name of the process that created the run
MANIFEST = ".synced.json"
INDEX_PATH = f"{CHECKPOINTS}/{INDEX}"
# Files that a resumed run does not have.
TRANSIENT = ("result.json", "per_class.json", "progress.json")
STATUS_FILES = ("job.yaml", "metrics.csv", EVENTS, "result.json", "progress.json", "search.yaml")
# Folders: checkpoints are synced separately, heartbeats are needed on one machine only.
NOT_SYNCED = {CHECKPOINTS, "heartbeats"}
SYNC_LOCK_TIMEOUT_S = 3600  # seconds to wait for another process to sync the same run


class SyncRecord(NamedTuple):
    """A file's size and modification times at its last synchronization."""

    remote_size: int
    remote_mtime_ns: int
    local_mtime_ns: int

    @classmethod
    def of(cls, file: RemoteFile, local_mtime_ns: int) -> "SyncRecord":
        """Return the record of a file that was just synchronized with `file`."""
        return cls(file.size, file.modified_ns, local_mtime_ns)


NEVER_SYNCED = SyncRecord(0, 0, 0)


class Manifest:
    """The record of each file's last synchronization, as a JSON file in the working copy."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self) -> dict[str, SyncRecord]:
        """Return the record of each synchronized file; {} if the manifest cannot be read."""
        try:
            rows = dict(json.loads((self.folder / MANIFEST).read_text()))
            return {name: SyncRecord(*row) for name, row in rows.items()}
        except (OSError, ValueError, TypeError):
            return {}

    def record(self, name: str) -> SyncRecord:
        """Return the record of one file; NEVER_SYNCED without one."""
        return self.read().get(name, NEVER_SYNCED)

    def update(self, changes: Mapping[str, SyncRecord | None]) -> None:
        """Update the records of synchronized files; None removes that of a deleted file."""
        if changes:
            path = self.folder / MANIFEST
            busy = f"another process has held {path} for {SYNC_LOCK_TIMEOUT_S} s"
            with lock(self.folder / ".synced.lock", busy, SYNC_LOCK_TIMEOUT_S):
                records = {name: row for name, row in {**self.read(), **changes}.items() if row}
                write_json(path, records)

    def is_unchanged(self, file: RemoteFile) -> bool:
        """Return whether a remote file is unchanged since it was last synchronized."""
        record = self.read().get(file.name)
        return record is not None and record[:2] == (file.size, file.modified_ns)


def is_synced_file(name: str) -> bool:
    """Return whether a file is synced when it changes: hidden files and checkpoints are not."""
    folders = name.split("/")[:-1]
    return not (NOT_SYNCED & {*folders} or any(part.startswith(".") for part in name.split("/")))


def merge_events(first: bytes, second: bytes) -> bytes:
    """Merge the lines of two diverged copies of events.jsonl, sorted by time."""
    lines = dict.fromkeys([*first.splitlines(), *second.splitlines()])
    return b"".join(line + b"\n" for line in sorted(lines, key=_time))


def _time(line: bytes) -> float:
    try:
        return float(json.loads(line)["time"])
    except (ValueError, TypeError, KeyError):
        return 0.0


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of a file system into StorageUnavailable, naming setting and URI."""
    try:
        yield
    except filesystem_errors() as error:
        raise StorageUnavailable(f"storage.path: {uri}: {first_line(error)}") from None


def mtime_ns(path: Path) -> int:
    """Return the modification time of a file in ns; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def has_content(path: Path, data: bytes) -> bool:
    """Return whether a file exists and contains exactly these bytes."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False
