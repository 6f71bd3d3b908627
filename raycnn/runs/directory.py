"""The run folder: its layout, and how runs are created and found.

runs/<job>/<n>/
    job.yaml            the resolved spec
    environment.json    Python, packages and devices
    metrics.csv         a row for each epoch
    events.jsonl        its events, one on each line: see training/callbacks.py
    checkpoints/        see training/checkpoint_folder.py
    heartbeats/         last epoch and step of each worker, if there are several
    logs/               a file for each worker; TensorBoard events in logs/tensorboard
    result.json         when done: test metrics and the best epoch
    per_class.json      test metrics of each class, and the confusion matrix
    progress.json       while it trains: current epoch and step

No file contains a path to the folder, so it can be moved.
"""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from raycnn import io
from raycnn.config import yaml_file
from raycnn.config.load import load_saved_job, saved_job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, EnvironmentUnavailable, SpecError, unknown
from raycnn.filesystem import base_name, is_uri, join, local_path, parent
from raycnn.runs import events, heartbeats, metrics_file
from raycnn.runs.environment import environment
from raycnn.runs.heartbeats import Heartbeat
from raycnn.runs.remote import storage
from raycnn.runs.remote.working_copy import WorkingCopy
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import Event, Failed, SettingChanged

RESULT, PER_CLASS = "result.json", "per_class.json"
RUN_LOCK_TIMEOUT_S = 2  # seconds to wait for the lock of a run, which listing runs holds briefly
STOP_POLL_INTERVAL_S = 0.25  # seconds between checks for a stop request

log = logging.getLogger("raycnn")


class Run:
    """One execution of a job."""

    def __init__(self, folder: Path, copy: WorkingCopy | None = None):
        self.folder = folder
        """The local folder of the run: its own, or its working copy."""
        self.location: Path | str = copy.uri if copy else folder
        """The address of the run, for users and `open`: the same folder, or a URI."""
        self.copy = copy
        """The working copy of a run at a URI, which synchronizes `folder`; None for a local run."""
        self.checkpoints = folder / "checkpoints"

    @classmethod
    def open(cls, location: Path | str) -> "Run":
        """Return the run at a path or a URI; from a URI, download all but its checkpoints.

        Raises EnvironmentUnavailable if the URI cannot be reached.
        """
        if not is_uri(str(location)):
            return cls(Path(location))
        copy = storage.open_copy(str(location))
        copy.pull()
        return cls(copy.folder, copy)

    @classmethod
    def create(cls, job: JobSpec) -> "Run":
        """Create a run folder with the next free number, and return its run.

        Raises EnvironmentUnavailable if it cannot be written.
        """
        if is_uri(job.storage.path):
            copy = storage.claim_numbered(job.storage.path, job.name)
            run = cls(copy.folder, copy)
            run.initialize(job)
            run.flush()
            return run
        parent = Path(job.storage.path).absolute() / job.name
        try:
            run = cls(create_numbered(parent))
            run.initialize(job)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"storage.path: cannot write to {parent}: {error}"
            ) from None
        return run

    def initialize(self, job: JobSpec) -> None:
        """Write the initial files and folders of the run. Raises OSError if that fails."""
        for subfolder in (self.checkpoints, self.folder / "logs"):
            subfolder.mkdir(parents=True, exist_ok=True)
        self.write_job(job)
        io.write_json(self.folder / "environment.json", environment())

    @classmethod
    def find(cls, text: str, root: str = "runs", *, trained: bool = False) -> "Run":
        """Return a run by its folder, by `job/n`, or by `job` for the latest.

        With `trained`, prefer the latest with a checkpoint. Raises SpecError if there is none.
        """
        preferred_file = "checkpoints/index.json" if trained else ""
        return cls.open(resolve_run("run", text, root, "job.yaml", preferred_file))

    @classmethod
    def all(cls, root: str = "runs") -> list["Run"]:
        """Return all runs at a path or URI, sorted by job and number."""
        if is_uri(root := local_path(root)):
            return [cls(copy.folder, copy) for copy in storage.list_copies(root, "job.yaml")]
        return [cls(folder) for folder in list_folders(root, "job.yaml")]

    @property
    def name(self) -> str:
        """The name of the run: `job/n`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def command(self, verb: str) -> str:
        """Return the command line, quoted for a shell, that calls a command with this run."""
        return shlex.join(["raycnn", verb, str(self.location)])

    def job(self) -> JobSpec:
        """Return the job in job.yaml or, if that is damaged, in the newest checkpoint.

        Raises SpecError if neither can be read.
        """
        try:
            return load_saved_job(self.folder / "job.yaml")
        except SpecError:
            path, _ = checkpoint_folder.latest_valid_checkpoint(self.checkpoints)
            if not path:
                raise
            return saved_job_from_tree(checkpoint_folder.read_state(path)["about"]["spec"])

    def write_job(self, job: JobSpec) -> None:
        """Write job.yaml, atomically."""
        yaml_file.write(self.folder / "job.yaml", job.tree())

    def reopen(self, job: JobSpec) -> list[SettingChanged]:
        """Prepare the run for more training with `job`; return the changed settings.

        The old result is put aside, for `cancel_reopening`. Raises EnvironmentUnavailable if the
        folder is not writable, or that at a URI is not.
        """
        try:
            for result, aside in self._results():
                result.replace(aside) if result.exists() else aside.unlink(missing_ok=True)
            changes = self._change_job(job)
        except OSError as error:
            raise EnvironmentUnavailable(f"cannot write to {self.folder}: {error}") from None
        self.flush()  # else the old result would be downloaded again
        return changes

    def cancel_reopening(self, job: JobSpec) -> None:
        """Put back the old job and its result, because the new one was refused.

        Raises EnvironmentUnavailable if the folder is not writable.
        """
        try:
            self._change_job(job)
            for result, aside in self._results():
                if aside.exists():
                    aside.replace(result)
        except OSError as error:
            raise EnvironmentUnavailable(f"cannot write to {self.folder}: {error}") from None
        self.flush()

    def _results(self) -> list[tuple[Path, Path]]:
        """Return the files of a result, each with the one to which it is put aside."""
        return [(self.folder / name, self.folder / f".{name}") for name in (RESULT, PER_CLASS)]

    def _change_job(self, job: JobSpec) -> list[SettingChanged]:
        changes = _changes(self.job().tree(), job.tree())
        self.write_job(job)
        for change in changes:
            with suppress(OSError):  # the event is lost on a full disk
                self.add_event(change)
        return changes

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json and per_class.json, and delete those put aside. Raises OSError."""
        large = {key: result[key] for key in ("per_class", "confusion")}
        small = {key: value for key, value in result.items() if key not in large}
        io.write_json(self.folder / PER_CLASS, large)
        io.write_json(self.folder / RESULT, small)
        for _, aside in self._results():
            aside.unlink(missing_ok=True)

    def result(self) -> dict[str, Any] | None:
        """Return result.json of a completed run, else None."""
        return io.read_json(self.folder / RESULT)

    def per_class(self) -> dict[str, Any] | None:
        """Return per_class.json (`per_class`, `confusion`) of a completed run, else None."""
        return io.read_json(self.folder / PER_CLASS)

    def add_event(self, event: Event) -> None:
        """Append an event to events.jsonl. Raises OSError if writing fails."""
        events.append_event(self.folder / "events.jsonl", event)

    def events(self) -> list[Event]:
        """Return the events of the run, oldest first."""
        return events.read_events(self.folder / "events.jsonl")

    def write_heartbeat(self, beat: Heartbeat) -> None:
        """Write a worker's heartbeat. Raises OSError if writing fails."""
        heartbeats.write_heartbeat(self.folder, beat)

    def heartbeats(self) -> dict[int, Heartbeat]:
        """Return the last heartbeat of each rank."""
        return heartbeats.read_heartbeats(self.folder)

    def stack(self, rank: int) -> str:
        """Return the stacks that faulthandler dumped for a rank; empty without a dump."""
        with suppress(OSError):
            return heartbeats.stack_path(self.folder, rank).read_text(errors="replace")
        return ""

    def progress(self) -> dict[str, Any]:
        """Return `epoch`, `step` and `steps` of a run that is training; else {}."""
        return io.read_json(self.folder / "progress.json") or {}

    def training(self) -> bool:
        """Return whether training has started its first epoch."""
        return bool(self.progress().get("epoch"))

    def rows(self) -> list[dict[str, str]]:
        """Return the metrics of each completed epoch."""
        return metrics_file.read_metrics(self.folder / "metrics.csv")

    def state(self) -> str:
        """Return the state of the run: done, running, failed or stopped."""
        if self.result():
            return "done"
        if io.is_locked(self.folder / ".lock") or self.copy and self.copy.lease.is_held():
            return "running"
        return "failed" if isinstance(self.last_event(), Failed) else "stopped"

    def last_event(self) -> Event | None:
        """Return the newest event, or None."""
        return next(reversed(self.events()), None)

    @contextmanager
    def lock(self, timeout_s: float = RUN_LOCK_TIMEOUT_S) -> Iterator[None]:
        """Lock the run for training.

        Raises EnvironmentUnavailable if another process trains it.
        """
        busy = f"{self.location} is being trained by another process"
        with io.lock(self.folder / ".lock", busy, timeout_s):
            # The stop request and the progress of an earlier process no longer apply.
            for name in (".stop", "progress.json"):
                (self.folder / name).unlink(missing_ok=True)
            with self.copy.hold_lease() if self.copy else nullcontext():
                yield

    def request_stop(self) -> None:
        """Ask the workers, on any machine, to save and stop."""
        (self.folder / ".stop").touch()
        if self.copy:
            self.copy.request_stop()

    def stop_requested(self) -> bool:
        """Return whether to save and stop: on request, or because uploads have failed."""
        return (self.folder / ".stop").exists() or bool(self.copy and self.copy.upload_failed)

    @contextmanager
    def syncing(self, rank: int, timeout_s: float) -> Iterator[None]:
        """Upload the files of worker `rank` in the background during the block, for a run at a URI.

        All files are uploaded when the block ends. Raises EnvironmentUnavailable if the storage is
        unreachable for `timeout_s` seconds.
        """
        if not self.copy:
            yield
            return

        def log_event(event: Event) -> None:
            log.warning(event.message)
            with suppress(OSError):  # the event is lost on a full disk
                self.add_event(event)

        with self.copy.syncing(rank, timeout_s, log_event):
            yield

    def flush(self) -> None:
        """Upload what was written to the folder, for a run at a URI.

        Inside `syncing` this only waits for the previous upload and queues the next. Raises
        EnvironmentUnavailable if an upload failed.
        """
        if self.copy:
            self.copy.push()

    def wait_flushed(self, timeout_s: float) -> bool:
        """Wait until all flushed files are uploaded; return False if the time was too short.

        Raises the same errors as `flush`.
        """
        return self.copy.wait(timeout_s) if self.copy else True

    def refresh(self) -> None:
        """Download what workers on other machines have written, for a run at a URI."""
        if self.copy:
            self.copy.refresh()

    def latest_checkpoint(self) -> tuple[Path | None, list[str]]:
        """Return the newest valid checkpoint, or None, and what is wrong with any newer ones.

        Raises DataError if there are checkpoints but none is valid.
        """
        if self.copy:
            self.copy.pull_checkpoints()
        return checkpoint_folder.latest_valid_checkpoint(self.checkpoints)

    def all_checkpoints(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first; a URI's are downloaded."""
        if self.copy:
            self.copy.pull_checkpoints()
        return sorted(self.checkpoints.glob("[0-9]*-[0-9]*"))

    def weights(self, which: str) -> Path:
        """Return the folder of the checkpoint `best` or `last`.

        Raises DataError if it is missing or damaged, SpecError for any other name.
        """
        if which not in ("best", "last"):
            raise SpecError(unknown("checkpoint", which, ["best", "last"]))
        if self.copy:
            self.copy.pull_checkpoints([which])
        name = checkpoint_folder.read_index(self.checkpoints).get(which)
        if not name:
            raise DataError(f"{self.location} has no {which} checkpoint: no epoch of it is done")
        if problem := checkpoint_folder.verify_checkpoint(self.checkpoints / name):
            raise DataError(problem)
        return self.checkpoints / name


def create_numbered(parent: Path) -> Path:
    """Create a folder in `parent` named by the next free number, and return it."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(path.name) for path in parent.iterdir() if path.name.isdecimal()]
        folder = parent / str(max(taken, default=0) + 1)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another process took this number
            continue


def resolve_run(
    kind: str, text: str, root: str, spec_name: str, preferred_file: str = ""
) -> Path | str:
    """Return the folder of a run or search, by its path, by `name/n`, or by `name` for the latest.

    It contains the file `spec_name`. By `name`, folders that contain `preferred_file` are
    preferred. A folder at a URI is returned as its URI. Raises SpecError if there is none.
    """
    text, root = local_path(text), local_path(root)
    for path in (Path(text), Path(root) / text):
        if os.path.isfile(path / spec_name):  # False without permission to read the folder
            return path.absolute()
    if is_uri(text) or is_uri(root):
        return _resolve_uri(kind, text, root, spec_name, preferred_file)
    folders = list_folders(root, spec_name)
    of_name = [path for path in folders if path.parent.name == text]
    if of_name:
        preferred = (path for path in reversed(of_name) if (path / preferred_file).exists())
        return next(preferred, of_name[-1])
    names = {name for p in folders for name in (f"{p.parent.name}/{p.name}", p.parent.name)}
    raise SpecError(unknown(kind, text, names) + f"; looked for a folder and in {root}/")


def _resolve_uri(kind: str, text: str, root: str, spec_name: str, preferred_file: str) -> str:
    uri = text if is_uri(text) else join(root, text)
    if storage.has_file(uri, spec_name):
        return uri
    if is_uri(text):
        raise SpecError(f"there is no {kind} at {text}: it has no {spec_name}")
    uris = [copy.uri for copy in storage.list_copies(root, spec_name)]
    name_of = {uri: base_name(parent(uri)) for uri in uris}
    of_name = [uri for uri in uris if name_of[uri] == text]
    if of_name:
        preferred = (uri for uri in reversed(of_name) if storage.has_file(uri, preferred_file))
        return next(preferred, of_name[-1]) if preferred_file else of_name[-1]
    names = {name for uri in uris for name in (f"{name_of[uri]}/{base_name(uri)}", name_of[uri])}
    raise SpecError(unknown(kind, text, names) + f"; looked in {root}")


def list_folders(root: str, spec_name: str) -> list[Path]:
    """Return the numbered folders that contain the file `spec_name`, by name and number."""
    folders = [path.parent.absolute() for path in Path(root).glob(f"*/*/{spec_name}")]
    numbered = [path for path in folders if path.name.isdecimal()]
    return sorted(numbered, key=lambda path: (path.parent, int(path.name)))


def _changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[SettingChanged]:
    changes = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _changes(old, new, f"{path}{key}.")
        elif old != new:
            changes.append(SettingChanged(key=f"{path}{key}", before=old, after=new))
    return changes
