"""Open the folders of runs and searches on nodes that may not see the driver's disk.

Where a node does not, an actor serves the folder, and the node treats it like any other one at a
remote location: see runs/remote/storage.py.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from filelock import FileLock, Timeout
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycnn.errors import ClusterError, EnvironmentUnavailable
from raycnn.filesystem import RemoteFolder, is_uri
from raycnn.io import is_locked
from raycnn.launch.ray.served_files import (
    FOLDER_ID_FILE,
    FileServer,
    RemoteCalls,
    ServedFolder,
    has_id,
    this_node,
)
from raycnn.paths import cache_folder
from raycnn.runs.directory import STOP_POLL_INTERVAL_S, Run
from raycnn.runs.remote.working_copy import SearchCopy, WorkingCopy
from raycnn.runtime import distributed
from raycnn.search.folder import Search, Trial

LOCK_S = 60  # removing stale copies may take a while


class SharedFolder(NamedTuple):
    """A folder of the driver, or a URI, as workers on any node can open it."""

    location: str
    folder_id: str = ""
    """The content of a file in the folder, by which a node recognizes it."""
    server: Any = None
    """The actor that serves the folder; None where all workers are on the driver's machine."""

    @property
    def folder(self) -> Path:
        return Path(self.location)

    def is_here(self) -> bool:
        """Return whether this node sees the folder."""
        return has_id(self.folder, self.folder_id)


def share_folder(location: Path | str, *, serve: bool) -> SharedFolder:
    """Return a folder or URI for workers; with `serve` also for those that cannot see the folder.

    Raises EnvironmentUnavailable where the folder cannot be written.
    """
    if is_uri(str(location)):
        return SharedFolder(str(location))
    folder_id = secrets.token_hex(16)
    try:
        (Path(location) / FOLDER_ID_FILE).write_text(folder_id)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write to {location}: {error}") from None
    return SharedFolder(str(location), folder_id, _start_server(str(location)) if serve else None)


def _start_server(folder: str) -> Any:
    """Start a server of a folder of this machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pinned = ray.remote(FileServer).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    return pinned.remote(folder)


@contextmanager
def open_shared_run(shared: SharedFolder, timeout_s: float) -> Iterator[Run]:
    """Open a run on a worker's node: directly, at its URI, or as a working copy.

    Raises ClusterError where the run cannot be reached.
    """
    if is_uri(shared.location):
        run = Run.open(shared.location)
        with run.syncing(distributed.rank(), timeout_s):
            yield run
    elif shared.is_here():
        yield Run(shared.folder)
    else:
        remote = _reach(shared, timeout_s)
        with (
            _temporary_folder(shared.folder_id) as folder,
            _open_copy(remote, folder, timeout_s) as run,
        ):
            yield run


@contextmanager
def open_shared_search(shared: SharedFolder, timeout_s: float) -> Iterator[Search]:
    """Open a search on a worker's node to read it: directly, or as a copy.

    Raises ClusterError where the search cannot be reached.
    """
    if shared.is_here():
        yield Search(shared.folder)
        return
    remote = _reach(shared, timeout_s)
    with _temporary_folder(f"{shared.folder_id}-{secrets.token_hex(4)}") as folder:
        copy = SearchCopy(remote, folder)
        copy.pull_records()
        yield Search(folder, copy)


@contextmanager
def open_shared_trial(
    shared: SharedFolder, name: str, timeout_s: float
) -> Iterator[tuple[Search, Trial]]:
    """Open a search, and one of its trials to train it.

    Raises ClusterError where the search cannot be reached.
    """
    with open_shared_search(shared, timeout_s) as search:
        if not search.copy:
            yield search, search.trial(name)
            return
        # Apart from the copy of the search, into which the other trials are pulled meanwhile.
        folder, remote = search.folder / ".own" / name, search.copy.remote.child("trials", name)
        folder.mkdir(parents=True)
        with _open_copy(remote, folder, timeout_s) as run:
            yield search, Trial(run)


def _reach(shared: SharedFolder, timeout_s: float) -> RemoteFolder:
    """Return a folder that this node does not see, as its server shows it."""
    if shared.server is None:
        raise ClusterError(
            f"{this_node()} does not see {shared.location}: storage.path must be a URI, or a "
            "folder that all nodes share"
        )
    call = RemoteCalls(shared.server, timeout_s)
    if not call("has_id", shared.folder_id):
        raise ClusterError(f"Ray on the machine that has {shared.location} does not see it either")
    return ServedFolder(call, shared.location)


@contextmanager
def _open_copy(remote: RemoteFolder, folder: Path, timeout_s: float) -> Iterator[Run]:
    copy = WorkingCopy(remote, folder, sync_interval_s=STOP_POLL_INTERVAL_S)
    copy.pull()
    run = Run(folder, copy)
    with run.syncing(distributed.rank(), timeout_s):
        yield run


@contextmanager
def _temporary_folder(name: str) -> Iterator[Path]:
    """Share a folder between the workers of a run on this node; the last one removes it."""
    copies = cache_folder() / "copies"
    folder = copies / name
    lock = FileLock(copies / ".lock", timeout=LOCK_S)
    used = FileLock(folder / f".used-{distributed.rank()}.lock", timeout=LOCK_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock:
            folder.mkdir(exist_ok=True)
            used.acquire()
            _clear(copies)
    except OSError as error:
        raise EnvironmentUnavailable(f"{this_node()}: cannot write to {copies}: {error}") from None
    try:
        yield folder
    finally:
        used.release()
        with suppress(Timeout), lock:  # else the next worker clears it
            _clear(copies)


def _clear(copies: Path) -> None:
    """Remove unused folders, including those of killed workers."""
    for folder in (path for path in copies.iterdir() if path.is_dir()):
        if not any(is_locked(path) for path in folder.glob(".used-*.lock")):
            shutil.rmtree(folder, ignore_errors=True)
