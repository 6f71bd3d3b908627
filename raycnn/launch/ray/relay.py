"""A run whose folder is not seen from every node: its keeper, and the copies that are worked in.

The keeper is an actor on the driver's machine, where the folder is. A copy is a folder on another
node, which the workers there share. It begins as the run's checkpoints. What is written into it
goes to the keeper: a checkpoint before its save returns, all else a moment later.
"""

import hashlib
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycnn.config.schema import JobSpec
from raycnn.errors import ClusterError, EnvironmentUnavailable, RaycnnError
from raycnn.launch.background import poll_in_background
from raycnn.paths import cache_folder
from raycnn.runs.directory import POLL_INTERVAL_S, Run
from raycnn.runs.heartbeats import FOLDER, Heartbeat
from raycnn.runtime import distributed
from raycnn.training import checkpoint
from raycnn.training.callbacks import Event

CHUNK = 64 << 20  # bytes that are in memory at once
MARK = ".here"  # what tells a run's folder from another one with the same path
DOOR_S = 60  # to remove what others left may take a while


class Checkpoints:
    """The checkpoints of one folder, as they are carried to another."""

    def __init__(self, run: Run):
        self.run, self.folder = run, run.checkpoints

    def names(self) -> dict[str, str]:
        """Each with what tells it from another: its state.json has the digests of its tensors."""
        states = self.folder.glob(f"[0-9]*/{checkpoint.STATE}")
        return {s.parent.name: hashlib.sha256(s.read_bytes()).hexdigest() for s in states}

    def files(self, name: str) -> list[tuple[str, int]]:
        """Names and bytes."""
        return [(path.name, path.stat().st_size) for path in (self.folder / name).iterdir()]

    def index(self) -> dict[str, str | None]:
        return checkpoint.read_index(self.folder)

    def read(self, name: str, file: str, offset: int) -> bytes:
        with (self.folder / name / file).open("rb") as source:
            source.seek(offset)
            return source.read(CHUNK)

    def write(self, name: str, file: str, offset: int, data: bytes) -> None:
        """Into a checkpoint that nobody takes for one, until it is installed."""
        path = self.folder / f".{name}" / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if offset else "wb") as target:
                target.seek(offset)
                target.write(data)
        except OSError:
            shutil.rmtree(path.parent, ignore_errors=True)  # the disk may be full of it
            raise

    def install(self, name: str) -> None:
        checkpoint.install(self.folder / f".{name}", self.folder / name)

    def flush(self, index: dict[str, str | None], names: list[str]) -> None:
        """Have this index, and no other checkpoints than these."""
        checkpoint.write_index(index, self.folder)
        checkpoint.drop_others(self.folder, names)


def carry(source: Any, target: Any) -> None:
    """Make the checkpoints of one place those of another, the index last; each end may be far."""
    wanted, there = source.names(), target.names()
    for name, digest in wanted.items():
        if there.get(name) != digest:
            for file, size in source.files(name):
                for offset in range(0, size, CHUNK):
                    target.write(name, file, offset, source.read(name, file, offset))
            target.install(name)
    target.flush(source.index(), list(wanted))


class Keeper(Checkpoints):
    """Has the folder of a run, where it is. Nothing is lost with it: it may be started again."""

    def __init__(self, folder: str):
        super().__init__(Run(Path(folder)))

    def sees(self, mark: str) -> bool:
        return sees(self.run.folder, mark)

    def job(self) -> JobSpec:
        return self.run.job()

    def write_job(self, job: JobSpec) -> None:
        self.run.write_job(job)

    def add_event(self, event: Event) -> None:
        self.run.add_event(event)

    def write_heartbeat(self, beat: Heartbeat) -> None:
        self.run.write_heartbeat(beat)

    def heartbeats(self) -> dict[int, Heartbeat]:
        return self.run.heartbeats()

    def stack(self, rank: int) -> str:
        return self.run.stack(rank)

    def stop_requested(self) -> bool:
        return self.run.stop_requested()

    def append(self, name: str, data: bytes) -> None:
        path = self.run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def replace(self, name: str, data: bytes) -> None:
        temporary = self.run.folder / f".{name}"
        temporary.write_bytes(data)
        temporary.replace(self.run.folder / name)


class _Far:
    """The keeper, from another node: what its methods return, and what they raise."""

    def __init__(self, actor: Any, patience_s: int):
        self.actor, self.patience_s = actor, patience_s

    def __getattr__(self, method: str) -> Any:
        def ask(*words: Any) -> Any:
            try:
                return ray.get(getattr(self.actor, method).remote(*words), timeout=self.patience_s)
            except ray.exceptions.GetTimeoutError:
                raise ClusterError(
                    f"the machine that has the run's folder gave no answer to {_here()} for "
                    f"{self.patience_s} s (workers.timeout_s)"
                ) from None
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

        return ask


class Copy(Run):
    """A run on a node that does not see its folder."""

    def __init__(self, folder: Path, home: Path, keeper: _Far):
        super().__init__(folder)
        self.home, self.keeper = home, keeper
        self._own = Checkpoints(self)
        # What workers that were here before left was theirs to send.
        self._sent = {path: path.stat().st_mtime_ns for path in self._facts()}
        self._sent |= {path: path.stat().st_size for path in self._logs()}
        self._one_at_a_time = threading.Lock()
        self._stop = False

    def job(self) -> JobSpec:
        job: JobSpec = self.keeper.job()
        return job

    def write_job(self, job: JobSpec) -> None:
        self.keeper.write_job(job)

    def add_event(self, event: Event) -> None:
        self.keeper.add_event(event)

    def write_heartbeat(self, beat: Heartbeat) -> None:
        with suppress(RaycnnError, ray.exceptions.RayError):  # the next one may
            self.keeper.write_heartbeat(beat)

    def heartbeats(self) -> dict[int, Heartbeat]:
        return dict(self.keeper.heartbeats())

    def stack(self, rank: int) -> str:
        return str(self.keeper.stack(rank))

    def stop_requested(self) -> bool:
        return self._stop

    def newest(self) -> tuple[Path | None, list[str]]:
        self._fetch()
        return super().newest()

    def weights(self, which: str) -> Path:
        self._fetch()
        return super().weights(which)

    def flush(self) -> None:
        carry(self._own, self.keeper)
        self._send()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Send what is new, and look whether to stop, now and then."""

        def look() -> None:
            with suppress(RaycnnError, ray.exceptions.RayError):  # the next look may
                self._send()
                self._stop = self.keeper.stop_requested()

        with poll_in_background(look, POLL_INTERVAL_S):
            yield

    def _fetch(self) -> None:
        """Have here the checkpoints of the run; the first of this node's workers brings them."""
        try:
            with FileLock(self.folder / ".fetching", timeout=self.keeper.patience_s):
                carry(self.keeper, self._own)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"{_here()}: cannot copy the run's checkpoints: {error}"
            ) from None

    def _send(self) -> None:
        with self._one_at_a_time:
            for path in self._logs():
                begun = self._sent.get(path, 0)
                with path.open("rb") as file:
                    file.seek(begun)
                    new = file.read()
                if new:
                    self.keeper.append(str(path.relative_to(self.folder)), new)
                    self._sent[path] = begun + len(new)
            for path in self._facts():
                changed = path.stat().st_mtime_ns
                if self._sent.get(path) != changed:
                    self.keeper.replace(path.name, path.read_bytes())
                    self._sent[path] = changed

    def _logs(self) -> list[Path]:
        """What this worker only adds to."""
        rank = distributed.rank()
        own = [self.folder / "logs" / f"rank-{rank}.log"]
        own += [self.folder / FOLDER / f"rank-{rank}.stack"]
        if distributed.rank() == 0:
            own += (self.folder / "logs" / "tensorboard").glob("*")
        return [path for path in own if path.exists()]

    def _facts(self) -> list[Path]:
        """What this worker writes anew each time."""
        found = self.folder.glob("[!.]*.*") if distributed.rank() == 0 else ()
        return [path for path in found if path.is_file()]


def mark(run: Run) -> str:
    """Have the folder known again where another one may have its path."""
    token = secrets.token_hex(16)
    try:
        (run.folder / MARK).write_text(token)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write to {run.folder}: {error}") from None
    return token


def sees(folder: Path, mark: str) -> bool:
    """Whether the folder that was marked is seen from here."""
    try:
        return (folder / MARK).read_text() == mark
    except OSError:
        return False


def keep(run: Run) -> Any:
    """The keeper of a run whose folder is on this machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pinned = ray.remote(Keeper).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    return pinned.remote(str(run.folder))


@contextmanager
def opened(folder: Path, mark: str, keeper: Any, patience_s: int) -> Iterator[Run]:
    """The run as a worker of it sees it: in its own folder, or in a copy on this node.

    Raises ClusterError where there is no way to the folder.
    """
    if sees(folder, mark):
        yield Run(folder)
        return
    if keeper is None:
        raise ClusterError(
            f"{_here()} does not see {folder}: storage.path must be a folder that all nodes share"
        )
    far = _Far(keeper, patience_s)
    if not far.sees(mark):
        raise ClusterError(f"the Ray of the machine that has {folder} does not see it either")
    with _room(mark) as room:
        copy = Copy(room, folder, far)
        with copy.kept():
            yield copy


@contextmanager
def _room(name: str) -> Iterator[Path]:
    """A folder for the workers of a run on this node; the last of them to leave removes it."""
    rooms = cache_folder() / "copies"
    room = rooms / name
    door = FileLock(rooms / ".lock", timeout=DOOR_S)
    used = FileLock(room / f".rank-{distributed.rank()}.lock", timeout=DOOR_S)
    try:
        with door:
            for inner in ("checkpoints", "logs"):
                (room / inner).mkdir(parents=True, exist_ok=True)
            used.acquire()
            _clear(rooms)
    except OSError as error:
        raise EnvironmentUnavailable(f"{_here()}: cannot write to {rooms}: {error}") from None
    try:
        yield room
    finally:
        used.release()
        with suppress(Timeout), door:  # else whoever comes next clears it
            _clear(rooms)


def _clear(rooms: Path) -> None:
    """Remove the rooms that nobody is in, also those that killed workers were in."""
    for room in (path for path in rooms.iterdir() if path.is_dir()):
        try:
            for lock in room.glob(".rank-*.lock"):
                with FileLock(lock, timeout=0):
                    pass
        except Timeout:
            continue
        shutil.rmtree(room, ignore_errors=True)


def _here() -> str:
    return f"node {ray.util.get_node_ip_address()}"
