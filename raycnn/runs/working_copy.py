"""The local working copy of a run or search at a URI; storage.py has the guarantees."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from raycnn.errors import EnvironmentUnavailable, RaycnnError
from raycnn.filesystem import RemoteFile, RemoteFolder, errors
from raycnn.io import is_locked
from raycnn.runs.lease import Lease
from raycnn.runs.manifest import (
    CHECKPOINTS,
    EVENTS,
    INDEX_PATH,
    STATUS_FILES,
    STOP,
    SYNC_LOCK_S,
    TRANSIENT,
    TRIALS,
    Manifest,
    has_content,
    is_synced_file,
    merge_events,
    mtime_ns,
    translate_errors,
)
from raycnn.runs.uploader import EventCallback, Index, Uploader
from raycnn.training import checkpoint
from raycnn.training.checkpoint import INDEX, STATE

SYNC_S = 2.0  # seconds between checks for changes
THREADS = 8  # parallel downloads
RECORDS = ("search.yaml", "trial.json", "job.yaml", "metrics.csv")


class WorkingCopy:
    """A local folder that is synchronized with a remote one."""

    def __init__(self, remote: RemoteFolder, folder: Path, every_s: float = SYNC_S):
        self.remote, self.folder, self.every_s = remote, folder, every_s
        self.checkpoints = folder / CHECKPOINTS
        self.manifest, self.lease = Manifest(folder), Lease(remote, every_s)
        self.uploaded: Index = {}
        """The remote index, as last read or written."""
        self._uploader: Uploader | None = None
        self._refreshed = 0.0
        try:
            for inner in (self.checkpoints, folder / "logs"):
                inner.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"cannot write the working copy of {remote.uri}: {error}; RAYCNN_CACHE moves it"
            ) from None

    @property
    def uri(self) -> str:
        """The URI of the remote folder."""
        return self.remote.uri

    # Download.

    def pull(self, there: list[RemoteFile] | None = None) -> None:
        """Download changed files except checkpoints, unless the run trains on this machine.

        `there` is the listing of the remote folder, if known. Raises EnvironmentUnavailable.
        """
        with self._sync_lock(), translate_errors(self.uri):
            if not (is_locked(self.folder / ".lock") or self._is_in_use()):
                self._pull(there)

    def refresh(self) -> None:
        """Download the status files that workers on other machines have changed."""
        if time.monotonic() - self._refreshed < self.every_s or self._is_in_use():
            return
        self._refreshed = time.monotonic()
        with suppress(*errors()), self._sync_lock():  # the next refresh may succeed
            self._pull([file for name in STATUS_FILES if (file := self.remote.file(name))])

    def pull_checkpoints(self, names: Iterable[str] = ("previous", "best", "last")) -> None:
        """Download the checkpoints with these names in the index, where they are newer."""
        if not self._uploader:
            with translate_errors(self.uri):
                # Where it trains on this machine, the newest checkpoints are local.
                if not is_locked(self.folder / ".rank-0.lock"):
                    self._pull_checkpoints(names)
        elif self._uploader.rank or not self._uploader.has_pulled:
            self._uploader.retry("read the checkpoints", partial(self._pull_checkpoints, names))
            self._uploader.has_pulled = True

    def _pull_checkpoints(self, names: Iterable[str]) -> None:
        with self._sync_lock():
            file = self.remote.file(INDEX_PATH)
            ours = file is None or self.manifest.is_unchanged(file)
            index = checkpoint.read_index(self.checkpoints) if ours else self._index()
            for name in dict.fromkeys(filter(None, map(index.get, names))):
                self._pull_checkpoint(name, self.checkpoints / name)
            if file and not ours:
                checkpoint.write_index(index, self.checkpoints)
                checkpoint.drop_others(self.checkpoints, index.values())
                self.manifest.update({INDEX_PATH: [*file[1:], mtime_ns(self.checkpoints / INDEX)]})

    def _pull_checkpoint(self, name: str, target: Path) -> None:
        there = f"{CHECKPOINTS}/{name}"
        files = {Path(file.name).name for file in self.remote.files(there)}
        if STATE not in files or has_content(target / STATE, self.remote.read(f"{there}/{STATE}")):
            return
        temporary = target.with_name(f".{name}")
        temporary.mkdir(exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda f: self.remote.download(f"{there}/{f}", temporary / f), files))
        checkpoint.install(temporary, target)

    def _pull(self, there: list[RemoteFile] | None = None) -> None:
        removable = {*TRANSIENT} if there is None else {*TRANSIENT} & {*STATUS_FILES}
        if there is None:
            there = self.remote.files("", recursive=True)
        wanted = [file for file in there if is_synced_file(file.name)]
        for name in removable - {file.name for file in wanted}:
            if self.manifest.read().get(name):
                self._path(name).unlink(missing_ok=True)
                self.manifest.update({name: []})
        changed = [
            f for f in wanted if not (self.manifest.is_unchanged(f) and self._path(f.name).exists())
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            self.manifest.update(dict(pool.map(self._pull_file, changed)))

    def _pull_file(self, file: RemoteFile) -> tuple[str, list[int]]:
        target = self._path(file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        self.remote.download(file.name, temporary)
        if file.name == EVENTS and target.exists():
            temporary.write_bytes(merge_events(temporary.read_bytes(), target.read_bytes()))
        os.replace(temporary, target)
        return file.name, [*file[1:], mtime_ns(target)]

    def _index(self) -> Index:
        self.uploaded = dict(json.loads(self.remote.read(INDEX_PATH)))
        return self.uploaded

    # Upload.

    def push(self) -> None:
        """Upload changed files; inside `syncing` in the background, after the previous upload.

        Raises EnvironmentUnavailable where an upload failed.
        """
        if self._uploader:
            self._uploader.push()
            return
        with translate_errors(self.uri):
            file, known = (
                self.remote.file(INDEX_PATH),
                self.manifest.read().get(INDEX_PATH, [0, 0, 0]),
            )
            changed = mtime_ns(self.checkpoints / INDEX) != known[2]
            if changed and (file is None or self.manifest.is_unchanged(file)):
                self.push_checkpoints(checkpoint.read_index(self.checkpoints))
            self.push_files()

    def wait(self) -> None:
        """Wait until all pushed files are uploaded. Raises as `push`."""
        if self._uploader:
            self._uploader.wait()

    def push_files(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Upload every changed file except checkpoints and hidden files."""
        manifest = self.manifest.read()
        new: dict[str, list[int]] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not (is_synced_file(name) and wanted(name) and path.is_file()):
                continue
            changed = mtime_ns(path)
            if manifest.get(name, [0, 0, 0])[2] != changed:
                self._push_file(path, name)
                file = self.remote.file(name)
                new[name] = [*file[1:], changed] if file else [0, 0, changed]
        for name in TRANSIENT:
            if manifest.get(name) and wanted(name) and not self._path(name).exists():
                self.remote.delete(name)
                new[name] = []
        self.manifest.update(new)

    def _push_file(self, path: Path, name: str) -> None:
        if name == EVENTS and self.remote.file(name):
            self._push_lines(path, name)
        else:
            self.remote.upload(path, name)

    def _push_lines(self, path: Path, name: str) -> None:
        """Append the lines that the remote file lacks; other machines may append to it too."""
        here, there = path.read_bytes(), self.remote.read(name)
        known = {*there.splitlines()}
        lacking = [line for line in here.splitlines() if line not in known]
        if lacking:
            try:
                self.remote.append(name, b"".join(line + b"\n" for line in lacking))
            except NotImplementedError:  # an object store
                self.remote.write(name, merge_events(there, here))

    def upload(self, index: Index | None, rank: int, is_ours: Callable[[], None]) -> None:
        """Upload the checkpoints of an index, if given, and the other files of a worker."""
        if index:
            self.push_checkpoints(index, is_ours)
        own = f"logs/rank-{rank}.log"
        self.push_files(lambda name: name == own or not (rank or name.startswith("logs/rank-")))

    def push_checkpoints(self, index: Index, is_ours: Callable[[], None] = lambda: None) -> None:
        """Upload the checkpoints of an index, then the index; delete other remote checkpoints.

        `is_ours` raises where another machine has taken over the run.
        """
        if not index:
            return
        before = self._index() if self.remote.file(INDEX_PATH) else {}
        for name in sorted({name for name in index.values() if name}):
            counts = name in before.values()
            if not (counts and self._is_uploaded(name)):
                self._push_checkpoint(name)
        is_ours()
        with self._sync_lock():
            if before != index:
                self.remote.write(INDEX_PATH, json.dumps(index).encode())
            self.uploaded = index
            if file := self.remote.file(INDEX_PATH):
                here = self.checkpoints / INDEX
                alike = checkpoint.read_index(self.checkpoints) == index
                self.manifest.update({INDEX_PATH: [*file[1:], mtime_ns(here) if alike else 0]})
        for old in filter(None, {*before.values()} - {*index.values()}):
            self.remote.delete_folder(f"{CHECKPOINTS}/{old}")

    def _is_uploaded(self, name: str) -> bool:
        try:
            state = self.remote.read(f"{CHECKPOINTS}/{name}/{STATE}")
        except FileNotFoundError:
            return False
        here = self.checkpoints / name / STATE
        return not here.exists() or has_content(here, state)

    def _push_checkpoint(self, name: str) -> None:
        files = sorted((self.checkpoints / name).iterdir(), key=lambda path: path.name == STATE)
        for path in files:
            self.remote.upload(path, f"{CHECKPOINTS}/{name}/{path.name}")

    # Leases and locks.

    @contextmanager
    def syncing(self, rank: int, timeout_s: float, on_event: EventCallback) -> Iterator[None]:
        """Upload this worker's files and poll for stop requests in the background.

        All files are uploaded at the end. Raises EnvironmentUnavailable where that failed.
        """
        used = FileLock(self.folder / f".rank-{rank}.lock", timeout=SYNC_LOCK_S)
        with used:
            self._uploader = uploader = Uploader(self, rank, timeout_s, on_event)
            try:
                yield
            except Exception as error:
                try:
                    uploader.close()
                except EnvironmentUnavailable:
                    if not isinstance(error, RaycnnError) or error.exit_code == 130:
                        raise
                raise
            except BaseException:
                uploader.give_up()
                raise
            else:
                uploader.close()
            finally:
                self._uploader = None

    @property
    def is_lost(self) -> bool:
        """Whether uploading has failed for good."""
        return bool(self._uploader and self._uploader.error)

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Hold the lease for training. Raises EnvironmentUnavailable where another holds it."""
        with translate_errors(self.uri):
            self.lease.take()
            with self._sync_lock():
                self._pull()
            self.remote.delete(STOP)
        with self.lease.renewed():
            yield

    def request_stop(self) -> None:
        """Ask the workers, on any machine, to save and stop. Raises EnvironmentUnavailable."""
        with translate_errors(self.uri):
            self.remote.write(STOP, b"stop")

    @contextmanager
    def _sync_lock(self) -> Iterator[None]:
        """Lock out other processes of this machine that sync the same run."""
        try:
            with FileLock(self.folder / ".sync.lock", timeout=SYNC_LOCK_S):
                yield
        except Timeout:
            raise EnvironmentUnavailable(
                f"another process has been copying {self.uri} for {SYNC_LOCK_S} s"
            ) from None

    def _is_in_use(self) -> bool:
        """Return whether a worker on this machine is writing to the working copy."""
        return any(is_locked(path) for path in self.folder.glob(".rank-*.lock"))

    def _path(self, name: str) -> Path:
        return self.folder.joinpath(*name.split("/"))


class SearchCopy(WorkingCopy):
    """The working copy of a search, which contains its trials, each like a run."""

    @classmethod
    def of(cls, copy: WorkingCopy) -> "SearchCopy":
        """Return the copy of a search for a working copy."""
        return cls(copy.remote, copy.folder, copy.every_s)

    def pull_records(self) -> None:
        """Download the specs and metrics of all trials, unless they train on this machine."""
        if not is_locked(self.folder / ".lock"):
            self.pull([one for one in self.remote.files() if Path(one.name).name in RECORDS])

    def pull_all(self) -> None:
        """Download all files, including the checkpoints of all trials."""
        self.pull()
        for trial in self._trials():
            trial.pull_checkpoints()

    def upload(self, index: Index | None, rank: int, is_ours: Callable[[], None]) -> None:
        """Upload the changed files and the checkpoints of all trials."""
        self.push_files()
        for trial in self._trials():
            with suppress(FileNotFoundError):  # replaced by a newer checkpoint meanwhile
                trial.push_checkpoints(checkpoint.read_index(trial.checkpoints), is_ours)

    def _trials(self) -> "list[WorkingCopy]":
        folders = sorted(path for path in (self.folder / TRIALS).glob("*") if path.is_dir())
        return [WorkingCopy(self.remote.child(TRIALS, path.name), path) for path in folders]
