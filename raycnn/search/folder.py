"""A search as its folder, and its trials: Search, Trial, and the SearchView that shows them.

runs/<search>/<n>/
    search.yaml             the resolved search
    trials/<id>/            each an ordinary run folder, and
        trial.json          its changes, and how it ended
    leaderboard.csv, .json  the trials, best first
    best-<architecture>.yaml    the job of the best trial
    *.png                   see report/search.py
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

from raycnn.config import search, yaml_file
from raycnn.config.schema import JobSpec
from raycnn.config.search import Pool, TrialKey, TuneSpec, load_resolved_search
from raycnn.config.yaml_file import Tree
from raycnn.errors import EnvironmentUnavailable
from raycnn.filesystem import is_uri, local_path
from raycnn.io import is_locked, lock, read_json, write_json
from raycnn.runs.directory import (
    RUN_LOCK_TIMEOUT_S,
    Run,
    create_numbered,
    list_folders,
    resolve_run,
)
from raycnn.runs.remote import storage
from raycnn.runs.remote.working_copy import SearchCopy
from raycnn.search.schedulers import SCHEDULERS, LearningCurve, Pbt, Scheduler
from raycnn.training.callbacks import Event

ENDED = ("done", "stopped", "failed")
log = logging.getLogger("raycnn")

TRIAL_LOCK_TIMEOUT_S = 60  # a worker that outlives its driver needs a while to release its trial


class SearchView(Protocol):
    """Protocol of what displays a search to the user."""

    def log(self, text: str) -> None:
        """Show a message."""

    def show(self, search: "Search", running: list[str]) -> None:
        """Show the search; called a few times per second with the ids of the running trials."""


class Trial:
    """One trial of a search: a run folder with a `trial.json`."""

    def __init__(self, run: Run):
        self.run = run

    @property
    def id(self) -> str:
        return self.run.folder.name

    @property
    def info(self) -> dict[str, Any]:
        """The content of trial.json; {} before the trial has started.

        Keys: architecture, number, fold, changes, epochs, device; once trained, parameters,
        val_images and wall_s; once ended, state, and reason unless it is done; in a population,
        generation, the scores at the end of earlier generations, and lineage.
        """
        return read_json(self.run.folder / "trial.json") or {}

    def update(self, **info: Any) -> None:
        """Update keys of trial.json."""
        write_json(self.run.folder / "trial.json", self.info | info)

    def lock(self) -> AbstractContextManager[None]:
        """Lock the run for training.

        A working copy needs no lock: its driver, on another machine, never starts a trial twice at
        the same time.
        """
        return nullcontext() if self.run.copy else self.run.lock(TRIAL_LOCK_TIMEOUT_S)

    @property
    def ended(self) -> bool:
        return self.info.get("state") in ENDED

    def rows(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv as numbers."""
        return [
            {key: float(value) for key, value in row.items() if value} for row in self.run.rows()
        ]

    def curve(self, tune: search.Tune) -> LearningCurve:
        """Return the search metric after each epoch; higher is better."""
        values = [tune.sign * row[tune.metric] for row in self.rows() if tune.metric in row]
        return LearningCurve(int(self.info.get("epochs", 0)), values)


class Search:
    """One execution of a search."""

    def __init__(self, folder: Path, copy: SearchCopy | None = None):
        self.folder, self.copy = folder, copy
        self.location: Path | str = copy.uri if copy else folder
        """The location of the search: its folder, or the URI that the folder is a copy of."""

    @classmethod
    def create(cls, search: TuneSpec) -> "Search":
        """Create the folder of a search, with the next free number.

        Raises EnvironmentUnavailable where it cannot be written.
        """
        path = search.architectures[0].job.storage.path
        if is_uri(path):
            copy = SearchCopy.of(storage.claim_numbered(path, search.name))
            created = cls(copy.folder, copy)
            created._initialize(search)
            created.flush()
            return created
        parent = Path(path).absolute() / search.name
        try:
            created = cls(create_numbered(parent))
            created._initialize(search)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"storage.path: cannot write to {parent}: {error}"
            ) from None
        return created

    @classmethod
    def find(cls, text: str, root: str = "runs") -> "Search":
        """Find a search by its folder, by `name/n`, or the latest of `name`.

        Raises SpecError when there is none.
        """
        location = resolve_run("search", text, root, "search.yaml")
        if isinstance(location, Path):
            return cls(location)
        copy = SearchCopy.of(storage.open_copy(location))
        copy.pull_all()
        return cls(copy.folder, copy)

    def _initialize(self, search: TuneSpec) -> None:
        (self.folder / "trials").mkdir()
        yaml_file.write(self.folder / "search.yaml", search.tree())

    @classmethod
    def all(cls, root: str = "runs") -> list["Search"]:
        if is_uri(root := local_path(root)):
            copies = [SearchCopy.of(copy) for copy in storage.list_copies(root, "search.yaml")]
            for copy in copies:
                copy.pull()
            return [cls(copy.folder, copy) for copy in copies]
        return [cls(folder) for folder in list_folders(root, "search.yaml")]

    @property
    def resume_command(self) -> str:
        """The command that continues the search, quoted for a shell."""
        return f"raycnn tune --resume {quote(str(self.location))}"

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def spec(self) -> TuneSpec:
        return load_resolved_search(self.folder / "search.yaml")

    @cached_property
    def scheduler(self) -> Scheduler:
        """The scheduler that decides which trials are stopped."""
        return SCHEDULERS.build(self.spec.tune.scheduler)

    def pause_epoch(self, trial: Trial) -> int:
        """Return the epoch after which a trial pauses: the end of its generation, else its last."""
        epochs = int(trial.info["epochs"])
        if not isinstance(self.scheduler, Pbt):
            return epochs
        return min(epochs, (trial.info.get("generation", 0) + 1) * self.scheduler.interval)

    def unfinished(self) -> list[TrialKey]:
        """Return the trials that have not ended, started or not, in order."""
        return [key for key in self.spec.trials() if not self.trial(key).ended]

    def state(self) -> str:
        """Return `done`, `running` or `stopped`."""
        if not self.unfinished():
            return "done"
        held = is_locked(self.folder / ".lock") or self.copy and self.copy.lease.is_held()
        return "running" if held else "stopped"

    def trial(self, key: TrialKey | str) -> Trial:
        """Return a trial, started or not."""
        name = key if isinstance(key, str) else key.id
        return Trial(Run(self.folder / "trials" / name))

    def trials(self) -> list[Trial]:
        """Return the trials that have started, in order."""
        trials = map(self.trial, self.spec.trials())
        return [trial for trial in trials if (trial.run.folder / "trial.json").is_file()]

    def begin(self, key: TrialKey, changes: Tree, pool: Pool) -> Trial:
        """Return a trial ready to be trained in a pool: a new one, or one to continue."""
        trial = self.trial(key)
        if trial.info:
            before = trial.run.job()
            timeout_s = {"timeout_s": before.workers.timeout_s}
            job = before.change({"workers": pool.worker_config.model_dump() | timeout_s})
            if job.tree() != before.tree():
                trial.run.reopen(job)
        else:
            shutil.rmtree(trial.run.folder, ignore_errors=True)  # incomplete after a kill
            fold = {} if key.fold is None else {"data.fold": [key.fold, self.spec.tune.folds]}
            job = key.architecture.job_of(self.spec.name, changes | fold, pool)
            trial.run.initialize(job)
            trial.update(
                architecture=key.architecture.name, number=key.number, fold=key.fold,
                changes=changes, epochs=job.train.epochs,
            )  # fmt: skip
        trial.update(device=pool.device)
        return trial

    def siblings(self, trial: Trial) -> list[LearningCurve]:
        """Return the curves so far of the other trials of the same architecture."""
        if self.copy:
            self.copy.pull_records()
        architecture = trial.info["architecture"]
        return [
            sibling.curve(self.spec.tune)
            for sibling in self.trials()
            if sibling.id != trial.id and sibling.info.get("architecture") == architecture
        ]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this search, so that no other process runs it.

        For a search at a URI, upload what is written to the folder meanwhile.
        """
        busy = f"{self.location} is being searched by another process"
        with lock(self.folder / ".lock", busy, RUN_LOCK_TIMEOUT_S):
            if not self.copy:
                yield
                return
            timeout_s = self.spec.architectures[0].job.storage.timeout_s
            with self.copy.hold_lease(), self.copy.syncing(0, timeout_s, _log_event):
                yield

    def changing(self) -> AbstractContextManager[Any]:
        """Upload no trial's files, for a search at a URI, until all have been changed."""
        return self.copy.changing if self.copy else nullcontext()

    def flush(self, wait: bool = False) -> None:
        """Upload what was written to the folder, for a search at a URI.

        While the search runs this only queues it, unless it is to `wait`. Raises
        EnvironmentUnavailable if that failed.
        """
        if self.copy:
            self.copy.push()
            if wait:
                self.copy.wait()

    @property
    def upload_failed(self) -> bool:
        """Whether uploading has failed for good: trials would be trained for nothing."""
        return bool(self.copy and self.copy.upload_failed)

    def best_job_path(self, architecture: str) -> Path:
        """Return the file with the job of the best trial of an architecture."""
        return self.folder / f"best-{architecture}.yaml"

    def write_best(self, architecture: str, job: JobSpec) -> None:
        """Write the job of the best trial of an architecture."""
        yaml_file.write(self.best_job_path(architecture), job.tree())


def _log_event(event: Event) -> None:
    log.warning(event.message)
