"""The local working copy of a run or search at a URI.

See storage.py for the consistency guarantees.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from shlex import quote
from threading import Lock

from raycnn.errors import EnvironmentUnavailable, Interrupted, RaycnnError
from raycnn.filesystem import RemoteFile, RemoteFolder, filesystem_errors
from raycnn.io import atomic_folder, atomic_path, is_locked, lock, read_json, write_json
from raycnn.runs.remote.lease import Lease
from raycnn.runs.remote.manifest import (
    CHECKPOINTS,
    CLAIM,
    EVENTS,
    INDEX_PATH,
    NEVER_SYNCED,
    STATUS_FILES,
    STOP,
    SYNC_LOCK_TIMEOUT_S,
    TRANSIENT,
    TRIALS,
    Manifest,
    SyncRecord,
    has_content,
    is_synced_file,
    merge_events,
    mtime_ns,
    translate_errors,
)
from raycnn.runs.remote.uploader import EventCallback, Index, Uploader
from raycnn.training import checkpoint_folder
from raycnn.training.checkpoint_folder import INDEX, STATE

SYNC_INTERVAL_S = 2.0  # seconds between checks for changes
DOWNLOAD_THREADS = 8  # number of files downloaded at once
TRIAL_FILES = ("search.yaml", "trial.json", "job.yaml", "metrics.csv")


class DamagedIndex(OSError):
    """The remote index of checkpoints cannot be parsed."""


class WorkingCopy:
    """A local folder that is synchronized with a remote one."""

    def __init__(
        self, remote: RemoteFolder, folder: Path, sync_interval_s: float = SYNC_INTERVAL_S
    ):
        self.remote, self.folder, self.sync_interval_s = remote, folder, sync_interval_s
        self.checkpoints = folder / CHECKPOINTS
        self.manifest, self.lease = Manifest(folder), Lease(remote, sync_interval_s)
        self.remote_index: Index = {}
        """The remote index of checkpoints, as last read or written."""
        self._uploader: Uploader | None = None
        self._refreshed_at = 0.0
        self._create_folders()

    def _create_folders(self) -> None:
        try:
            for subfolder in (self.checkpoints, self.folder / "logs"):
                subfolder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"cannot write the working copy of {self.uri}: {error}; "
                "set RAYCNN_CACHE to another folder"
            ) from None

    @property
    def uri(self) -> str:
        """The URI of the remote folder."""
        return self.remote.uri

    @property
    def resume_command(self) -> str:
        """The command that continues the run, quoted for a shell."""
        return f"raycnn resume {quote(self.uri)}"

    # Download.

    def pull(self, remote_files: list[RemoteFile] | None = None) -> None:
        """Download changed files except checkpoints, unless the run trains on this machine.

        `remote_files` is the listing of the remote folder, if the caller has one. Raises
        EnvironmentUnavailable if the storage fails.
        """
        with self._sync_lock(), translate_errors(self.uri):
            if not (is_locked(self.folder / ".lock") or self._is_in_use()):
                self._pull(remote_files)

    def refresh(self) -> None:
        """Download the status files that workers on other machines have changed."""
        if time.monotonic() - self._refreshed_at < self.sync_interval_s or self._is_in_use():
            return
        self._refreshed_at = time.monotonic()
        with suppress(*filesystem_errors()), self._sync_lock():  # the next refresh may succeed
            self._pull([file for name in STATUS_FILES if (file := self.remote.file(name))])

    def pull_checkpoints(self, names: Iterable[str] = ("previous", "best", "last")) -> None:
        """Download the checkpoints with these names in the index, if they are newer.

        If this process trains, rank 0 downloads them only once, at the start: from then on it
        writes newer ones itself. The other ranks may be on other machines, and always download.
        """
        if not self._uploader:
            with translate_errors(self.uri):
                # While rank 0 trains in another process of this machine, the newest are local.
                if not is_locked(self.folder / ".rank-0.lock"):
                    self._pull_checkpoints(names)
        elif self._uploader.rank or not self._uploader.has_pulled:
            self._uploader.call_until_reachable(
                "read the checkpoints", partial(self._pull_checkpoints, names)
            )
            self._uploader.has_pulled = True

    def _pull_checkpoints(self, names: Iterable[str]) -> None:
        with self._sync_lock():
            index_file = self.remote.file(INDEX_PATH)
            local_is_current = index_file is None or self.manifest.is_unchanged(index_file)
            if local_is_current:
                index = checkpoint_folder.read_index(self.checkpoints)
            else:
                index = self._read_remote_index()
            for name in dict.fromkeys(filter(None, map(index.get, names))):
                # A local one of the same name may be newer: a population's are copied from others.
                if not (local_is_current and (self.checkpoints / name).is_dir()):
                    self._pull_checkpoint(name, self.checkpoints / name)
            # The index comes last, so that a download that was interrupted is begun again.
            if index_file and not local_is_current:
                checkpoint_folder.write_index(index, self.checkpoints)
                checkpoint_folder.delete_except(self.checkpoints, index.values())
                record = SyncRecord.of(index_file, mtime_ns(self.checkpoints / INDEX))
                self.manifest.update({INDEX_PATH: record})

    def _pull_checkpoint(self, name: str, target: Path) -> None:
        remote_dir = f"{CHECKPOINTS}/{name}"
        files = {Path(file.name).name for file in self.remote.files(remote_dir)}
        if STATE not in files:  # which is uploaded last: the checkpoint is incomplete
            return
        if has_content(target / STATE, self.remote.read(f"{remote_dir}/{STATE}")):
            return
        with atomic_folder(target, durable=True) as temporary:

            def download(file: str) -> None:
                self.remote.download(f"{remote_dir}/{file}", temporary / file)

            with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
                list(pool.map(download, files))

    def begin(self, claim: str) -> None:
        """Empty the working copy for a new run: a deleted run of its number may have left one.

        `claim` is the remote file that tells the new run from others.
        """
        with self._sync_lock():
            self._empty()
            write_json(self._claims_path, {"claims": [claim]})

    def _adopt(self, claims: list[str]) -> None:
        """Empty the working copy if it is of an earlier run at this URI, deleted there since.

        `claims` are the remote files that tell two runs apart; copies made by hand may have none.
        """
        known = (read_json(self._claims_path) or {}).get("claims", [])
        # For a moment a run may have the claim of another process too, which wants its number.
        if not claims or {*known} & {*claims}:
            return
        if known:
            self._empty()
        write_json(self._claims_path, {"claims": claims})

    @property
    def _claims_path(self) -> Path:
        return self.folder / f"{CLAIM}.json"

    def _empty(self) -> None:
        """Delete everything but the locks, which this process may hold, and the old claims.

        They are replaced later: until then an interrupted call is repeated.
        """
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry != self._claims_path and not entry.name.endswith(".lock"):
                entry.unlink()
        self._create_folders()

    def _pull(self, remote_files: list[RemoteFile] | None = None) -> None:
        removable = {*TRANSIENT}  # if the listing lacks them
        if remote_files is None:
            remote_files = self.remote.files("", recursive=True)
        else:  # of the transient files, a caller lists only these
            removable &= {*STATUS_FILES}
        self._adopt(sorted(f.name for f in remote_files if f.name.startswith(f"{CLAIM}/")))
        synced = [file for file in remote_files if is_synced_file(file.name)]
        for name in removable - {file.name for file in synced}:
            if name in self.manifest.read():
                self._path(name).unlink(missing_ok=True)
                self.manifest.update({name: None})
        changed = [
            f for f in synced if not (self.manifest.is_unchanged(f) and self._path(f.name).exists())
        ]
        with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            self.manifest.update(dict(pool.map(self._pull_file, changed)))

    def _pull_file(self, file: RemoteFile) -> tuple[str, SyncRecord]:
        target = self._path(file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            self.remote.download(file.name, temporary)
            if file.name == EVENTS and target.exists():
                temporary.write_bytes(merge_events(temporary.read_bytes(), target.read_bytes()))
        return file.name, SyncRecord.of(file, mtime_ns(target))

    def _read_remote_index(self) -> Index:
        """Read the index. Raises DamagedIndex if it is damaged."""
        text = self.remote.read(INDEX_PATH)
        try:
            self.remote_index = dict(json.loads(text))
        except (ValueError, TypeError):
            raise DamagedIndex(f"{INDEX_PATH} is damaged: it begins with {text[:40]!r}") from None
        return self.remote_index

    # Upload.

    def push(self) -> None:
        """Upload changed files; inside `syncing` in the background, after the previous upload.

        Raises EnvironmentUnavailable if an upload failed.
        """
        if self._uploader:
            self._uploader.push()
            return
        with translate_errors(self.uri):
            if not self._is_in_use():  # a worker on this machine uploads its own, and replaces them
                self._push_new_checkpoints()
            self.push_files()

    def _push_new_checkpoints(self) -> None:
        """Upload the checkpoints if the index has changed here, and on no other machine."""
        if not self._has_new_checkpoints():
            return
        index_file = self.remote.file(INDEX_PATH)
        if index_file is None or self.manifest.is_unchanged(index_file):
            self.push_checkpoints(checkpoint_folder.read_index(self.checkpoints))

    def _has_new_checkpoints(self) -> bool:
        """Return whether the index has changed here since it was last synchronized."""
        record = self.manifest.record(INDEX_PATH)
        return mtime_ns(self.checkpoints / INDEX) != record.local_mtime_ns

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all pushed files are uploaded; return False if the time was too short.

        Raises the same errors as `push`.
        """
        return self._uploader.wait(timeout_s) if self._uploader else True

    def push_files(self, is_included: Callable[[str], bool] = lambda name: True) -> None:
        """Upload every changed file except checkpoints and hidden files."""
        records = self.manifest.read()
        changes: dict[str, SyncRecord | None] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not (is_synced_file(name) and is_included(name) and path.is_file()):
                continue
            local_mtime_ns = mtime_ns(path)  # before the upload, to notice changes during it
            if records.get(name, NEVER_SYNCED).local_mtime_ns != local_mtime_ns:
                changes[name] = SyncRecord.of(self._push_file(path, name), local_mtime_ns)
        for name in TRANSIENT:
            if name in records and is_included(name) and not self._path(name).exists():
                self.remote.delete(name)
                changes[name] = None
        self.manifest.update(changes)

    def _push_file(self, path: Path, name: str) -> RemoteFile:
        if name == EVENTS and self.remote.file(name):
            return self._push_lines(path, name)
        return self.remote.upload(path, name)

    def _push_lines(self, path: Path, name: str) -> RemoteFile:
        """Append the lines that the remote file lacks; other machines may append to it too."""
        local, remote = path.read_bytes(), self.remote.read(name)
        remote_lines = {*remote.splitlines()}
        missing = [line for line in local.splitlines() if line not in remote_lines]
        if missing:
            try:
                self.remote.append(name, b"".join(line + b"\n" for line in missing))
            except NotImplementedError:  # object stores cannot append
                return self.remote.write(name, merge_events(remote, local))
        return self.remote.file(name) or RemoteFile(name, 0, 0)

    def upload(self, index: Index | None, rank: int, check_lease: Callable[[], None]) -> None:
        """Upload the checkpoints of an index, if given, and the other files of a worker."""
        if index:
            self.push_checkpoints(index, check_lease)
        log_file = f"logs/rank-{rank}.log"
        self.push_files(
            lambda name: name == log_file or not (rank or name.startswith("logs/rank-"))
        )

    def push_checkpoints(
        self, index: Index, check_lease: Callable[[], None] = lambda: None
    ) -> None:
        """Upload the checkpoints of an index, then the index; delete other remote checkpoints.

        `check_lease` raises an error if another machine has taken over the run.
        """
        if not index:
            return
        local_mtime_ns = mtime_ns(self.checkpoints / INDEX)
        index_file = self.remote.file(INDEX_PATH)
        try:
            old_index = self._read_remote_index() if index_file else {}
        except DamagedIndex:  # it was written wrong, and is written again below
            old_index, index_file = self.remote_index, None
        try:
            uploaded = self._push_missing(index, old_index)
        except FileNotFoundError:
            newest = checkpoint_folder.read_index(self.checkpoints)
            if newest == index:
                raise
            # Training has replaced one of them, and queues the newest next.
            check_lease()
            self._delete({*index.values()} - {*old_index.values()} - {*newest.values()})
            return
        check_lease()
        with self._sync_lock():
            # Also an equal index tells other machines of a new checkpoint of an old name.
            if index_file is None or old_index != index or uploaded:
                index_file = self.remote.write(INDEX_PATH, json.dumps(index).encode())
            self.remote_index = index
            # If training has saved again since `index` was read, a time of 0 marks the index as
            # changed, so that the next push uploads it.
            if checkpoint_folder.read_index(self.checkpoints) != index:
                local_mtime_ns = 0
            self.manifest.update({INDEX_PATH: SyncRecord.of(index_file, local_mtime_ns)})
        self._delete({*old_index.values()} - {*index.values()})

    def _push_missing(self, index: Index, old_index: Index) -> list[str]:
        """Upload the checkpoints of an index that `old_index`, the remote one, does not have.

        Return their names.
        """
        # One that is not listed may be incomplete; one that is listed, another machine's.
        names = sorted({name for name in index.values() if name})
        missing = [n for n in names if not (n in old_index.values() and self._is_uploaded(n))]
        for name in missing:
            self._push_checkpoint(name)
        return missing

    def _delete(self, names: set[str | None]) -> None:
        for name in filter(None, names):
            self.remote.delete_folder(f"{CHECKPOINTS}/{name}")

    def _is_uploaded(self, name: str) -> bool:
        try:
            remote_state = self.remote.read(f"{CHECKPOINTS}/{name}/{STATE}")
        except FileNotFoundError:
            return False
        local_state = self.checkpoints / name / STATE
        return not local_state.exists() or has_content(local_state, remote_state)

    def _push_checkpoint(self, name: str) -> None:
        # The state comes last: a remote checkpoint that has one is complete.
        files = sorted((self.checkpoints / name).iterdir(), key=lambda path: path.name == STATE)
        for path in files:
            self.remote.upload(path, f"{CHECKPOINTS}/{name}/{path.name}")

    # Leases and locks.

    @contextmanager
    def syncing(self, rank: int, timeout_s: float, on_event: EventCallback) -> Iterator[None]:
        """Upload the files of worker `rank` and poll for stop requests in the background.

        All files are uploaded at the end. Raises EnvironmentUnavailable if that failed.
        """
        busy = f"another process has been training {self.uri} for {SYNC_LOCK_TIMEOUT_S} s"
        with lock(self.folder / f".rank-{rank}.lock", busy, SYNC_LOCK_TIMEOUT_S):
            self._uploader = uploader = Uploader(self, rank, timeout_s, on_event)
            try:
                yield
            except Exception as error:
                try:
                    uploader.close()
                except EnvironmentUnavailable:
                    # A RaycnnError of the job is reported rather than the failed upload, except
                    # for Interrupted, which says that the state has been saved.
                    if not isinstance(error, RaycnnError) or isinstance(error, Interrupted):
                        raise
                raise
            except BaseException:  # such as a second Ctrl-C: whoever sent it does not want to wait
                uploader.give_up()
                raise
            else:
                uploader.close()
            finally:
                self._uploader = None

    @property
    def upload_failed(self) -> bool:
        """Whether uploading has failed for good."""
        return bool(self._uploader and self._uploader.error)

    @contextmanager
    def hold_lease(self) -> Iterator[None]:
        """Hold the lease for training. Raises EnvironmentUnavailable if another machine has it."""
        with translate_errors(self.uri):
            self.lease.acquire()
            with self._sync_lock():
                self._pull()
            self.remote.delete(STOP)  # left over from an earlier training of the run
        with self.lease.renewing():
            yield

    def request_stop(self) -> None:
        """Ask the workers, on any machine, to save and stop.

        Raises EnvironmentUnavailable if the storage fails.
        """
        with translate_errors(self.uri):
            self.remote.write(STOP, b"stop")

    def _sync_lock(self) -> AbstractContextManager[None]:
        """Lock out other processes of this machine that sync the same run."""
        busy = f"another process has been copying {self.uri} for {SYNC_LOCK_TIMEOUT_S} s"
        return lock(self.folder / ".sync.lock", busy, SYNC_LOCK_TIMEOUT_S)

    def _is_in_use(self) -> bool:
        """Return whether a worker on this machine is writing to the working copy."""
        return any(is_locked(path) for path in self.folder.glob(".rank-*.lock"))

    def _path(self, name: str) -> Path:
        return self.folder.joinpath(*name.split("/"))


class SearchCopy(WorkingCopy):
    """The working copy of a search, which contains its trials, each like a run."""

    def __init__(
        self, remote: RemoteFolder, folder: Path, sync_interval_s: float = SYNC_INTERVAL_S
    ):
        super().__init__(remote, folder, sync_interval_s)
        self.changing = Lock()
        """Held while several files of trials change together, which are not uploaded meanwhile."""

    @classmethod
    def of(cls, copy: WorkingCopy) -> "SearchCopy":
        """Return the copy of a search for a working copy."""
        return cls(copy.remote, copy.folder, copy.sync_interval_s)

    @property
    def resume_command(self) -> str:
        """The command that continues the search, quoted for a shell."""
        return f"raycnn tune --resume {quote(self.uri)}"

    def pull_records(self) -> None:
        """Download the specs and metrics of all trials, unless they train on this machine."""
        if not is_locked(self.folder / ".lock"):
            self.pull([f for f in self.remote.files() if Path(f.name).name in TRIAL_FILES])

    def pull_all(self) -> None:
        """Download all files and checkpoints, unless the search runs on this machine."""
        self.pull()
        if not is_locked(self.folder / ".lock"):
            self._pull_trials()

    @contextmanager
    def hold_lease(self) -> Iterator[None]:
        """Hold the lease for training, and download the checkpoints of all trials.

        Raises EnvironmentUnavailable if another machine has it.
        """
        with super().hold_lease():
            self._pull_trials()
            yield

    def _pull_trials(self) -> None:
        for trial in self._trials():
            trial.pull_checkpoints()

    def upload(self, index: Index | None, rank: int, check_lease: Callable[[], None]) -> None:
        """Upload the changed files, and the checkpoints of the trials that have new ones."""
        check_lease()
        with self.changing:
            self.push_files()
        for trial in self._trials():
            if not trial._has_new_checkpoints():
                continue
            with suppress(FileNotFoundError):  # the trial is being replaced by a copy of another
                trial.push_checkpoints(checkpoint_folder.read_index(trial.checkpoints), check_lease)

    def _push_new_checkpoints(self) -> None:
        for trial in self._trials():
            trial._push_new_checkpoints()

    def _trials(self) -> "list[WorkingCopy]":
        folders = sorted(path for path in (self.folder / TRIALS).glob("*") if path.is_dir())
        return [WorkingCopy(self.remote.child(TRIALS, path.name), path) for path in folders]
