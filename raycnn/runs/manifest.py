"""What a run at a URI consists of, and which of its files are synchronized."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from raycnn.errors import EnvironmentUnavailable, first_line
from raycnn.filesystem import RemoteFile, errors
from raycnn.training.checkpoint import INDEX

CHECKPOINTS, EVENTS, STOP, TRIALS = "checkpoints", "events.jsonl", ".stop", "trials"
MANIFEST = ".synced.json"
INDEX_PATH = f"{CHECKPOINTS}/{INDEX}"
# Files that a resumed run does not have.
TRANSIENT = ("result.json", "per_class.json", "progress.json")
STATUS_FILES = ("job.yaml", "metrics.csv", EVENTS, "result.json", "progress.json", "search.yaml")
NOT_SYNCED = {CHECKPOINTS, "heartbeats"}  # folders: synced separately; needed on one machine only
SYNC_LOCK_S = 3600  # seconds to wait for another process to sync the same run


class Manifest:
    """The remote size and time and the local time of each file at its last synchronization."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self) -> dict[str, list[int]]:
        """Return the entry of each file: remote size, remote and local modification time in ns."""
        try:
            return dict(json.loads((self.folder / MANIFEST).read_text()))
        except (OSError, ValueError):
            return {}

    def update(self, entries: dict[str, list[int]]) -> None:
        """Update the entries of synchronized files; [] marks a deleted file."""
        if entries:
            with FileLock(self.folder / ".synced.lock", timeout=SYNC_LOCK_S):
                known = {name: entry for name, entry in (self.read() | entries).items() if entry}
                temporary = self.folder / f"{MANIFEST}.new"
                temporary.write_text(json.dumps(known))
                os.replace(temporary, self.folder / MANIFEST)

    def is_unchanged(self, file: RemoteFile) -> bool:
        """Return whether a remote file is unchanged since it was last synchronized."""
        return self.read().get(file.name, [])[:2] == list(file[1:])


def is_synced_file(name: str) -> bool:
    """Return whether a file is synced when it changes: hidden files and checkpoints are not."""
    folders = name.split("/")[:-1]
    return not (NOT_SYNCED & {*folders} or any(part.startswith(".") for part in name.split("/")))


def merge_events(one: bytes, other: bytes) -> bytes:
    """Return the merged lines of two diverged copies of events.jsonl, sorted by time."""
    lines = dict.fromkeys([*one.splitlines(), *other.splitlines()])
    return b"".join(line + b"\n" for line in sorted(lines, key=_time))


def _time(line: bytes) -> float:
    try:
        return float(json.loads(line)["time"])
    except (ValueError, TypeError, KeyError):
        return 0.0


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of a file system into EnvironmentUnavailable, naming setting and URI."""
    try:
        yield
    except errors() as error:
        raise EnvironmentUnavailable(f"storage.path: {uri}: {first_line(error)}") from None


def mtime_ns(path: Path) -> int:
    """Return the modification time of a file in ns; 0 where it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def has_content(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False
