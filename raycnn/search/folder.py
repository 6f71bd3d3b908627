"""The folder of a search: what is written where, and found again.

runs/<search>/<n>/
    search.yaml             the resolved search
    .began                  since when the time budget counts
    trials/<id>/            each an ordinary run folder, and
        trial.json          what it changes, and how it ended
    leaderboard.csv, .json  the trials, best first
    best-<architecture>.yaml    a job that comes to the best trial's metric
    *.png                   see report/search.py
    logs/                   Ray Tune's own files, which nothing reads
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from raycnn import io
from raycnn.config import search, yaml_file
from raycnn.config.schema import JobSpec
from raycnn.config.search import Architecture, Pool, TuneSpec, load_resolved_search
from raycnn.config.yaml_file import Tree
from raycnn.errors import EnvironmentUnavailable
from raycnn.runs.directory import LOCK_S, Run, create_numbered, list_folders, resolve_run
from raycnn.search.schedulers import RULES, LearningCurve, Pbt, Rule

ENDED = ("done", "stopped", "failed")
TAKE_OVER_S = 60  # for a worker that the driver's death left behind to notice, and let go


class SearchView(Protocol):
    """Where a person watches a search."""

    def note(self, text: str) -> None: ...

    def show(self, search: "Search", under_way: list[str]) -> None:
        """Called now and then with the trials that are trained, and with none at the end."""


class Trial:
    """One training of a search: a run, and what it has to do with the others."""

    def __init__(self, folder: Path):
        self.run = Run(folder)

    @property
    def id(self) -> str:
        return self.run.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """architecture, number, changes, epochs, device; when trained: parameters, val_images,
        wall_s; when ended: state, and the reason where it did not come to its end; of a member of a
        population: its generation, the scores at the ends of earlier ones, and its descent."""
        return io.read_json(self.run.folder / "trial.json") or {}

    def note(self, **facts: Any) -> None:
        io.write_json(self.run.folder / "trial.json", self.facts | facts)

    @property
    def ended(self) -> bool:
        return self.facts.get("state") in ENDED

    def rows(self) -> list[dict[str, float]]:
        return [
            {key: float(value) for key, value in row.items() if value} for row in self.run.rows()
        ]

    def course(self, tune: search.Tune) -> LearningCurve:
        values = [tune.sign * row[tune.metric] for row in self.rows() if tune.metric in row]
        return LearningCurve(int(self.facts.get("epochs", 0)), values)


class Search:
    """One execution of a search."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def create(cls, search: TuneSpec) -> "Search":
        """A new folder, numbered after the ones that are there."""
        parent = Path(search.architectures[0].job.storage.path).absolute() / search.name
        try:
            created = cls(create_numbered(parent))
            for inner in ("trials", "logs"):
                (created.folder / inner).mkdir()
            _write(created.folder / "search.yaml", search.tree())
        except OSError as error:
            raise EnvironmentUnavailable(
                f"storage.path: cannot write to {parent}: {error}"
            ) from None
        return created

    @classmethod
    def find(cls, text: str, root: str = "runs") -> "Search":
        """By its folder, by `search/n`, or the latest of `search`. Raises SpecError for none."""
        return cls(resolve_run("search", text, root, "search.yaml"))

    @classmethod
    def all(cls, root: str = "runs") -> list["Search"]:
        return [cls(folder) for folder in list_folders(root, "search.yaml")]

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def spec(self) -> TuneSpec:
        return load_resolved_search(self.folder / "search.yaml")

    @cached_property
    def rule(self) -> Rule:
        return RULES.build(self.spec.tune.scheduler)

    def until(self, trial: Trial) -> int:
        """After how many epochs it has to wait for others: with pbt, at its generation's end."""
        epochs = int(trial.facts["epochs"])
        if not isinstance(self.rule, Pbt):
            return epochs
        return min(epochs, (trial.facts.get("generation", 0) + 1) * self.rule.interval)

    def count_anew(self) -> None:
        """The next trial that begins is the first, to the time budget."""
        (self.folder / ".began").unlink(missing_ok=True)

    def count_from_here(self) -> None:
        """A trial begins."""
        with suppress(FileExistsError):
            (self.folder / ".began").touch(exist_ok=False)

    def deadline(self) -> float | None:
        """Until when there is time, in seconds since 1970; None before the first trial begins."""
        budget = self.spec.tune.time_budget_s
        if not budget:
            return None
        with suppress(FileNotFoundError):
            return (self.folder / ".began").stat().st_mtime + budget
        return None

    def wanted(self) -> list[tuple[Architecture, int]]:
        """Every trial of the search, the architectures taking turns."""
        tune, all_of = self.spec.tune, self.spec.architectures
        counts = {a.name: a.trials(tune.trials) for a in all_of}
        rounds = range(max(counts.values()))
        return [(a, number) for number in rounds for a in all_of if number < counts[a.name]]

    def waiting(self) -> list[tuple[Architecture, int]]:
        """The trials that have not ended."""
        return [(a, number) for a, number in self.wanted() if not self.trial(a, number).ended]

    def state(self) -> str:
        """done, running or stopped: one word for a list."""
        if not self.waiting():
            return "done"
        return "running" if io.is_locked(self.folder / ".lock") else "stopped"

    def trial(self, architecture: Architecture, number: int) -> Trial:
        """Where the trial is, or will be."""
        return Trial(self.folder / "trials" / f"{architecture.name}-{number:03d}")

    def trials(self) -> list[Trial]:
        """Those that have begun."""
        wanted = (self.trial(architecture, number) for architecture, number in self.wanted())
        return [trial for trial in wanted if (trial.run.folder / "trial.json").is_file()]

    def begin(self, architecture: Architecture, number: int, changes: Tree, pool: Pool) -> Trial:
        """Make the folder of a trial, or give one that was begun to another pool."""
        trial = self.trial(architecture, number)
        if trial.facts:
            before = trial.run.job()
            job = before.change({"workers": pool.trainers.model_dump()})
            if job.tree() != before.tree():
                trial.run.reopen(job)
        else:
            shutil.rmtree(trial.run.folder, ignore_errors=True)  # half made by what was killed
            job = architecture.changed(self.spec.name, changes, pool)
            trial.run.initialize(job)
            about = {"architecture": architecture.name, "number": number, "changes": changes}
            trial.note(**about, epochs=job.train.epochs)
        trial.note(device=pool.device)
        return trial

    def siblings(self, trial: Trial) -> list[LearningCurve]:
        """The other trials of its architecture, as far as they have come."""
        own = trial.facts["architecture"]
        others = [other for other in self.trials() if other.id != trial.id]
        return [o.course(self.spec.tune) for o in others if o.facts.get("architecture") == own]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from searching in this folder."""
        busy = f"{self.folder} is being searched by another process"
        with io.lock(self.folder / ".lock", busy, LOCK_S):
            yield

    def best_job(self, architecture: str) -> Path:
        return self.folder / f"best-{architecture}.yaml"

    def write_best(self, architecture: str, job: JobSpec) -> None:
        _write(self.best_job(architecture), job.tree())


def _write(path: Path, tree: Tree) -> None:
    with io.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml_file.dump(tree, file)
