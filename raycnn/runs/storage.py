"""Runs at a URI: a local working copy, synchronized with remote storage.

The working copy is a local folder in the cache. Remote files are downloaded when the run is opened,
checkpoints when they are needed; local files are uploaded by `push`, during training from a
background thread.

Guarantees, on every file system with read-after-write consistency (S3, GCS, HDFS, NFS):

- A checkpoint is valid once the remote index names it. Its tensors are uploaded first, then its
  state.json with their digests, then the index, and only then are older ones deleted: if any of
  this is interrupted, the previous checkpoint is intact.
- A number belongs to one run. A process that wants it writes a claim and lists all claims: at most
  one process finds its own alone, even where a file system has no exclusive creation.
- One process trains a run. It holds a lease, a file that it rewrites every few seconds. Another
  machine takes the lease over when it has not changed for LEASE_S; a trainer that lost its lease
  uploads no further index. Both machines can write only for the duration of one request.
- A machine resumes from its local files, uploaded or not, unless another machine has trained the
  run since; then the remote files are used.
"""

import hashlib
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from raycnn.errors import EnvironmentUnavailable, RaycnnError, first_line
from raycnn.filesystem import (
    NO_FOLDERS,
    PERMANENT_ERRORS,
    RemoteFile,
    RemoteFolder,
    base_name,
    errors,
    join,
    parent,
)
from raycnn.io import is_locked
from raycnn.paths import cache_folder
from raycnn.training import checkpoint
from raycnn.training.callbacks import Event, StorageReached, StorageUnreachable
from raycnn.training.checkpoint import INDEX, STATE

Index = dict[str, str | None]
EventCallback = Callable[[Event], None]

CHECKPOINTS, EVENTS, STOP, TRIALS = "checkpoints", "events.jsonl", ".stop", "trials"
CLAIM, LEASE, CLOCK, MANIFEST = ".claim", ".lease", ".clock", ".synced.json"
INDEX_PATH = f"{CHECKPOINTS}/{INDEX}"
# Files that a resumed run does not have.
TRANSIENT = ("result.json", "per_class.json", "progress.json")
FACTS = ("job.yaml", "metrics.csv", EVENTS, "result.json", "progress.json", "search.yaml")
NOT_SYNCED = {CHECKPOINTS, "heartbeats"}  # folders: synced separately; needed on one machine only
SYNC_S = 2.0  # seconds between checks for changes
LEASE_S = 60.0  # seconds without a renewal after which a lease expires
RENEW_S = 10.0  # seconds between renewals of a lease
SYNC_LOCK_S = 3600  # seconds to wait for another process to sync the same run
PAUSE_S = 15.0  # maximum seconds between retries
THREADS = 8  # parallel downloads


class WorkingCopy:
    """A local folder that is synchronized with a remote one."""

    def __init__(self, remote: RemoteFolder, folder: Path, every_s: float = SYNC_S):
        self.remote, self.folder, self.every_s = remote, folder, every_s
        self.checkpoints = folder / CHECKPOINTS
        self.uploaded: Index = {}
        """The remote index, as last read or written."""
        self._uploader: _Uploader | None = None
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
        with self._sync_lock(), _translate_errors(self.uri):
            if not (is_locked(self.folder / ".lock") or self._is_in_use()):
                self._pull(there)

    def refresh(self) -> None:
        """Download the status files that workers on other machines have changed."""
        if time.monotonic() - self._refreshed < self.every_s or self._is_in_use():
            return
        self._refreshed = time.monotonic()
        with suppress(*errors()), self._sync_lock():  # the next refresh may succeed
            self._pull([file for name in FACTS if (file := self.remote.file(name))])

    def pull_checkpoints(self, names: Iterable[str] = ("previous", "best", "last")) -> None:
        """Download the checkpoints with these names in the index, where they are newer."""
        if not self._uploader:
            with _translate_errors(self.uri):
                # Where it trains on this machine, the newest checkpoints are local.
                if not is_locked(self.folder / ".rank-0.lock"):
                    self._pull_checkpoints(names)
        elif self._uploader.rank or not self._uploader.has_pulled:
            self._uploader.retry("read the checkpoints", partial(self._pull_checkpoints, names))
            self._uploader.has_pulled = True

    def _pull_checkpoints(self, names: Iterable[str]) -> None:
        with self._sync_lock():
            file = self.remote.file(INDEX_PATH)
            ours = file is None or self._is_unchanged(file)
            index = checkpoint.read_index(self.checkpoints) if ours else self._index()
            for name in dict.fromkeys(filter(None, map(index.get, names))):
                self._pull_checkpoint(name, self.checkpoints / name)
            if file and not ours:
                checkpoint.write_index(index, self.checkpoints)
                checkpoint.drop_others(self.checkpoints, index.values())
                self._record({INDEX_PATH: [*file[1:], _mtime_ns(self.checkpoints / INDEX)]})

    def _pull_checkpoint(self, name: str, target: Path) -> None:
        there = f"{CHECKPOINTS}/{name}"
        files = {Path(file.name).name for file in self.remote.files(there)}
        if STATE not in files or _has_content(target / STATE, self.remote.read(f"{there}/{STATE}")):
            return
        temporary = target.with_name(f".{name}")
        temporary.mkdir(exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda f: self.remote.download(f"{there}/{f}", temporary / f), files))
        checkpoint.install(temporary, target)

    def _pull(self, there: list[RemoteFile] | None = None) -> None:
        removable = {*TRANSIENT} if there is None else {*TRANSIENT} & {*FACTS}
        if there is None:
            there = self.remote.files("", recursive=True)
        wanted = [file for file in there if _is_synced_file(file.name)]
        for name in removable - {file.name for file in wanted}:
            if self._manifest().get(name):
                self._path(name).unlink(missing_ok=True)
                self._record({name: []})
        changed = [f for f in wanted if not (self._is_unchanged(f) and self._path(f.name).exists())]
        with ThreadPoolExecutor(THREADS) as pool:
            self._record(dict(pool.map(self._pull_file, changed)))

    def _is_unchanged(self, file: RemoteFile) -> bool:
        """Return whether a remote file is unchanged since it was last synchronized."""
        return self._manifest().get(file.name, [])[:2] == list(file[1:])

    def _pull_file(self, file: RemoteFile) -> tuple[str, list[int]]:
        target = self._path(file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        self.remote.download(file.name, temporary)
        if file.name == EVENTS and target.exists():
            temporary.write_bytes(merge_events(temporary.read_bytes(), target.read_bytes()))
        os.replace(temporary, target)
        return file.name, [*file[1:], _mtime_ns(target)]

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
        with _translate_errors(self.uri):
            file, known = self.remote.file(INDEX_PATH), self._manifest().get(INDEX_PATH, [0, 0, 0])
            changed = _mtime_ns(self.checkpoints / INDEX) != known[2]
            if changed and (file is None or self._is_unchanged(file)):
                self.push_checkpoints(checkpoint.read_index(self.checkpoints))
            self.push_files()

    def wait(self) -> None:
        """Wait until all pushed files are uploaded. Raises as `push`."""
        if self._uploader:
            self._uploader.wait()

    def push_files(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Upload every changed file except checkpoints and hidden files."""
        manifest = self._manifest()
        new: dict[str, list[int]] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not (_is_synced_file(name) and wanted(name) and path.is_file()):
                continue
            changed = _mtime_ns(path)
            if manifest.get(name, [0, 0, 0])[2] != changed:
                self._push_file(path, name)
                file = self.remote.file(name)
                new[name] = [*file[1:], changed] if file else [0, 0, changed]
        for name in TRANSIENT:
            if manifest.get(name) and wanted(name) and not self._path(name).exists():
                self.remote.delete(name)
                new[name] = []
        self._record(new)

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
                self._record({INDEX_PATH: [*file[1:], _mtime_ns(here) if alike else 0]})
        for old in filter(None, {*before.values()} - {*index.values()}):
            self.remote.delete_folder(f"{CHECKPOINTS}/{old}")

    def _is_uploaded(self, name: str) -> bool:
        try:
            state = self.remote.read(f"{CHECKPOINTS}/{name}/{STATE}")
        except FileNotFoundError:
            return False
        here = self.checkpoints / name / STATE
        return not here.exists() or _has_content(here, state)

    def _push_checkpoint(self, name: str) -> None:
        files = sorted((self.checkpoints / name).iterdir(), key=lambda path: path.name == STATE)
        for path in files:
            self.remote.upload(path, f"{CHECKPOINTS}/{name}/{path.name}")

    # Leases and locks.

    @contextmanager
    def syncing(self, rank: int, timeout_s: float, tell: EventCallback) -> Iterator[None]:
        """Upload this worker's files and poll for stop requests in the background.

        All files are uploaded at the end. Raises EnvironmentUnavailable where that failed.
        """
        used = FileLock(self.folder / f".rank-{rank}.lock", timeout=SYNC_LOCK_S)
        with used:
            self._uploader = uploader = _Uploader(self, rank, timeout_s, tell)
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
        own = f"{LEASE}/{_machine_id()}"
        with _translate_errors(self.uri):
            self._take_lease(own)
            with self._sync_lock():
                self._pull()
            self.remote.delete(STOP)
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(own, over), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            with suppress(*errors()):  # else it expires
                self.remote.delete(own)

    def is_leased(self) -> bool:
        """Return whether a machine holds a lease that has not expired."""
        with suppress(*errors()):
            then = [file.modified_ns / 1e9 for file in self.remote.files(LEASE)]
            return any(time.time() - seconds < LEASE_S for seconds in then)
        return False

    def holders(self) -> set[str]:
        """Return the names of all lease files."""
        return {file.name for file in self.remote.files(LEASE)}

    def request_stop(self) -> None:
        """Ask the workers, on any machine, to save and stop. Raises EnvironmentUnavailable."""
        with _translate_errors(self.uri):
            self.remote.write(STOP, b"stop")

    def _take_lease(self, own: str) -> None:
        """Take the lease once all others have expired.

        Raises EnvironmentUnavailable when another machine renews its lease or takes one first.
        """
        before: list[RemoteFile] = []
        while others := self._other_leases(own):
            if before and others != before:
                raise EnvironmentUnavailable(
                    f"{self.uri} is being trained by {self._describe_holder(others)}"
                )
            self.remote.write(CLOCK, b"")
            now = self.remote.file(CLOCK)
            newest = max(file.modified_ns for file in others)
            if now and now.modified_ns - newest > LEASE_S * 1e9:
                for file in others:
                    self.remote.delete(file.name)
                break
            before = others
            time.sleep(self.every_s)
        self.remote.write(own, f"{socket.gethostname()}, process {os.getpid()}".encode())
        if others := self._other_leases(own):
            self.remote.delete(own)
            raise EnvironmentUnavailable(
                f"{self.uri} is being trained by {self._describe_holder(others)}"
            )

    def _other_leases(self, own: str) -> list[RemoteFile]:
        return [file for file in self.remote.files(LEASE) if file.name != own]

    def _describe_holder(self, leases: list[RemoteFile]) -> str:
        try:
            return f"another process ({self.remote.read(leases[0].name).decode()})"
        except errors():
            return "another process"

    def _renew(self, own: str, over: threading.Event) -> None:
        while not over.wait(RENEW_S):
            with suppress(*errors()):  # the next renewal may succeed
                if self.remote.file(own):
                    self.remote.write(own, self.remote.read(own))

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

    def _manifest(self) -> dict[str, list[int]]:
        """Return each file's remote size and time and local time at its last synchronization."""
        try:
            return dict(json.loads((self.folder / MANIFEST).read_text()))
        except (OSError, ValueError):
            return {}

    def _record(self, alike: dict[str, list[int]]) -> None:
        """Update the manifest with synchronized files; [] marks a deleted file."""
        if alike:
            with FileLock(self.folder / ".synced.lock", timeout=SYNC_LOCK_S):
                known = {name: facts for name, facts in (self._manifest() | alike).items() if facts}
                temporary = self.folder / f"{MANIFEST}.new"
                temporary.write_text(json.dumps(known))
                os.replace(temporary, self.folder / MANIFEST)


class SearchCopy(WorkingCopy):
    """The working copy of a search, which contains its trials, each like a run."""

    @classmethod
    def of(cls, copy: WorkingCopy) -> "SearchCopy":
        """Return the copy of a search for a working copy."""
        return cls(copy.remote, copy.folder, copy.every_s)

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


class _Uploader:
    """A background thread that uploads a worker's files: on rank 0 all but other ranks' logs."""

    def __init__(self, copy: WorkingCopy, rank: int, timeout_s: float, tell: EventCallback):
        self.copy, self.rank, self.timeout_s, self.tell = copy, rank, timeout_s, tell
        self.error: Exception | None = None
        self.has_pulled = False
        """Whether this worker has downloaded the checkpoints; from then on rank 0 writes newer."""
        self._wake = threading.Condition()
        self._pending: Index | None = None
        self._over = threading.Event()
        self._holders: set[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Wait for the previous upload, then queue the current checkpoints."""
        self.wait()
        with self._wake:
            self._pending = checkpoint.read_index(self.copy.checkpoints) if self.rank == 0 else {}
            self._wake.notify_all()

    def wait(self) -> None:
        """Wait until nothing is queued. Raises the error that ended uploading."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending is None or self.error)
        if self.error:
            raise self.error

    def close(self) -> None:
        """Upload the remaining files and stop. Raises the error that ended uploading."""
        self._over.set()
        with self._wake:
            self._wake.notify_all()
        self._thread.join()
        if self.error:
            raise self.error

    def give_up(self) -> None:
        """Stop without retrying uploads that fail."""
        self.timeout_s = 0
        self._over.set()

    def _run(self) -> None:
        over = False
        while not over and not self.error:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._pending is not None or self._over.is_set(), self.copy.every_s
                )
            over, index = self._over.is_set(), self._pending
            try:
                self.retry("save a checkpoint", partial(self._upload, index))
            except Exception as error:  # raised by `wait` and `close`
                self.error = error
            with self._wake:
                if self._pending is index:
                    self._pending = None
                over = over and self._pending is None
                self._wake.notify_all()

    def _upload(self, index: Index | None) -> None:
        if self.rank == 0 and self._holders is None:
            self._holders = self.copy.holders()
        self.copy.upload(index, self.rank, self._check_lease)
        if self.rank == 0 and self.copy.remote.file(STOP):
            (self.copy.folder / STOP).touch()

    def _check_lease(self) -> None:
        if self._holders and not self._holders & self.copy.holders():
            raise EnvironmentUnavailable(
                f"{self.copy.uri} was taken over by another machine, which this one had not "
                "reached for long: it ends here"
            )

    def retry(self, doing: str, work: Callable[[], None]) -> None:
        """Call `work`, retrying while storage fails.

        Raises EnvironmentUnavailable after `timeout_s` seconds, or at once on a full disk.
        """
        began, pause, last = time.monotonic(), 1.0, ""
        while True:
            try:
                work()
                break
            except errors() as error:
                if getattr(error, "errno", None) in PERMANENT_ERRORS:
                    raise EnvironmentUnavailable(self._failure_message(doing, error)) from None
                if not last:
                    away = StorageUnreachable(
                        uri=self.copy.uri, error=first_line(error), timeout_s=self.timeout_s
                    )
                    self.tell(away)
                last = first_line(error)
            if time.monotonic() - began > self.timeout_s:
                why = f"not reached for {self.timeout_s:g} s (storage.timeout_s): {last}"
                raise EnvironmentUnavailable(self._failure_message(doing, why))
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_S)
        if last:
            self.tell(StorageReached(uri=self.copy.uri, waited_s=time.monotonic() - began))

    def _failure_message(self, doing: str, why: object) -> str:
        last = self.copy.uploaded.get("last")
        whole = f"the last whole checkpoint there is {last}" if last else "no checkpoint is there"
        return (
            f"cannot {doing}: storage.path: {self.copy.uri}: {why}; {whole}, and "
            f"`raycnn resume {self.copy.uri}` goes on"
        )


def open_copy(uri: str) -> WorkingCopy:
    """Return this machine's working copy of a run or search at a URI."""
    root = parent(parent(uri))
    place = hashlib.sha256(root.encode()).hexdigest()[:16]
    folder = cache_folder() / "remote" / place / base_name(parent(uri)) / base_name(uri)
    with _translate_errors(uri):
        return WorkingCopy(RemoteFolder.open(uri), folder)


def claim_numbered(root: str, name: str) -> WorkingCopy:
    """Create a folder `name`/n at a URI with the next free number; return its working copy."""
    with _translate_errors(root):
        check_reachable(root)
        above = RemoteFolder.open(join(root, name))
        token = secrets.token_hex(16)
        while True:
            taken = [int(folder) for folder in above.folders() if folder.isdigit()]
            number = str(max(taken, default=0) + 1)
            own = f"{number}/{CLAIM}/{token}"
            above.write(own, b"")
            if [file.name for file in above.files(f"{number}/{CLAIM}")] == [own]:
                return open_copy(join(root, name, number))
            above.delete(own)
            time.sleep(random.uniform(0, 1))


def list_copies(root: str, spec_name: str) -> list[WorkingCopy]:
    """Return the working copies of the numbered folders at a URI that contain `spec_name`.

    They are sorted by name and number; the files that lists of runs need are downloaded.
    """
    with _translate_errors(root):
        check_reachable(root)
        found: dict[tuple[str, str], list[RemoteFile]] = {}
        for file in RemoteFolder.open(root).files():
            name, _, rest = file.name.partition("/")
            number, _, inner = rest.partition("/")
            if number.isdigit() and inner in FACTS:
                found.setdefault((name, number), []).append(file._replace(name=inner))
    copies = []
    for (name, number), files in sorted(
        found.items(), key=lambda item: (item[0][0], int(item[0][1]))
    ):
        if spec_name in (file.name for file in files):
            copies.append(open_copy(join(root, name, number)))
            copies[-1].pull(files)
    return copies


def is_run(uri: str, spec_name: str) -> bool:
    """Return whether there is a folder at a URI that contains the file `spec_name`."""
    with _translate_errors(uri):
        check_reachable(uri)
        return RemoteFolder.open(uri).file(spec_name) is not None


def check_reachable(uri: str) -> None:
    """Raise EnvironmentUnavailable where the file system or bucket of a URI is unreachable."""
    with _translate_errors(uri):
        folder = RemoteFolder.open(uri)
        top = folder.path.strip("/").partition("/")[0]
        if folder.system.type_name in NO_FOLDERS:
            if folder.system.get_file_info(top).type.name == "NotFound":
                raise EnvironmentUnavailable(f"storage.path: {uri}: there is no bucket {top!r}")
        folder.files("", recursive=False)


def _is_synced_file(name: str) -> bool:
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
def _translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of a file system into EnvironmentUnavailable, naming setting and URI."""
    try:
        yield
    except errors() as error:
        raise EnvironmentUnavailable(f"storage.path: {uri}: {first_line(error)}") from None


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


def _mtime_ns(path: Path) -> int:
    """Return the modification time of a file in ns; 0 where it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _has_content(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False
