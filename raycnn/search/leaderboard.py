"""The leaderboard: the results of all trials, best first, and the jobs of the winners."""

import csv
import json
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from raycnn.config.yaml_file import Tree
from raycnn.io import atomic_path, read_json, write_json
from raycnn.search.folder import ENDED, Search, Trial
from raycnn.training.uncertainty import confidence_interval


@dataclass(frozen=True)
class LeaderboardEntry:
    """The result of a trial, or of all folds of a configuration; None where a value is unknown."""

    trial: str
    architecture: str
    device: str
    """The kind of device that the trial was last trained on."""
    state: str
    """done, stopped (by the scheduler), failed, or unfinished."""
    metric: float | None
    """The search metric in the best epoch; with folds the best mean over the folds by epoch."""
    val_acc1: float | None
    """Validation accuracy in that epoch."""
    low: float | None
    """Lower end of the 95 % interval of val_acc1."""
    high: float | None
    epochs: int
    """Completed epochs, of `of_epochs`."""
    of_epochs: int
    parameters: int | None
    seconds: float
    """Time of training and validation, without waiting for resources."""
    images_per_s: float | None
    """Training throughput, averaged over the epochs."""
    reason: str
    """Why the trial ended early; in a population, which trials it copied."""
    changes: Tree
    deviation: float | None = None
    """Standard deviation of the metric over folds."""


def leaderboard(search: Search) -> list[LeaderboardEntry]:
    """Return all started configurations, best first, then those without a metric, then failed ones.

    The folds of a configuration are one entry.
    """
    configurations: dict[tuple[str, int], list[Trial]] = {}
    for trial in search.trials():
        info = trial.info
        configurations.setdefault((info["architecture"], info["number"]), []).append(trial)
    folds = len(search.spec.folds)
    entries = [_entry(search, trials, folds) for trials in configurations.values()]
    return ranked(entries, search.spec.tune.sign)


def configuration_entry(search: Search, architecture: str, number: int) -> LeaderboardEntry:
    """Return the entry of one started configuration."""
    keys = [
        key
        for key in search.spec.trials()
        if (key.architecture.name, key.number) == (architecture, number)
    ]
    started = [trial for trial in map(search.trial, keys) if trial.info]
    return _entry(search, started, len(keys))


def trial_entry(search: Search, trial: Trial) -> LeaderboardEntry:
    """Return the entry of one started trial, which may be a single fold of a configuration."""
    return _entry(search, [trial], 1)


def entry_rows(search: Search, entry: LeaderboardEntry) -> list[dict[str, float]]:
    """Return the metrics of an entry after each epoch; with folds their mean."""
    tables = [search.trial(name).rows() for name in _trial_ids(search, entry)]
    return [
        {key: fmean(row[key] for row in rows) for key in rows[0] if all(key in r for r in rows)}
        for rows in zip(*tables, strict=False)
    ]


def _trial_ids(search: Search, entry: LeaderboardEntry) -> list[str]:
    if not search.spec.tune.folds:
        return [entry.trial]
    return [f"{entry.trial}-fold{fold}" for fold in search.spec.folds]


def ranked(entries: list[LeaderboardEntry], sign: int) -> list[LeaderboardEntry]:
    """Sort entries, best first."""

    def sort_key(entry: LeaderboardEntry) -> tuple[bool, bool, float]:
        known = entry.metric is not None
        return entry.state != "failed", known, sign * (entry.metric or 0.0)

    return sorted(entries, key=sort_key, reverse=True)


def _entry(search: Search, trials: list[Trial], folds: int) -> LeaderboardEntry:
    """Return the entry of a configuration of `folds` trials, of which these have started."""
    tune, infos = search.spec.tune, [trial.info for trial in trials]
    metric, first = tune.metric, infos[0]
    tables = [[row for row in trial.rows() if metric in row] for trial in trials]
    states = [info.get("state", "unfinished") for info in infos]
    ended = len(trials) == folds and all(state in ENDED for state in states)
    epochs = min(map(len, tables))
    rows: list[dict[str, float]] = []
    """The metrics of each fold in the epoch that is best on average."""
    if epochs and (folds == 1 or ended):
        best = max(range(epochs), key=lambda e: tune.sign * fmean(t[e][metric] for t in tables))
        rows = [table[best] for table in tables]
    accuracy, low, high = _accuracy(rows, [info.get("val_images", 0) for info in infos])
    reasons = [info.get("reason") or info.get("lineage", "") for info in infos]
    speeds = [row["images_per_s"] for table in tables for row in table]
    return LeaderboardEntry(
        trial=trials[0].id.partition("-fold")[0] if folds > 1 else trials[0].id,
        architecture=first["architecture"],
        device=first.get("device", ""),
        state=next((s for s in ("failed", "stopped", "done") if s in states), "unfinished")
        if ended
        else "unfinished",
        metric=fmean(row[metric] for row in rows) if rows else None,
        deviation=stdev(row[metric] for row in rows) if len(rows) > 1 else None,
        val_acc1=accuracy,
        low=low,
        high=high,
        epochs=epochs,
        of_epochs=first["epochs"],
        parameters=first.get("parameters"),
        seconds=sum(info.get("wall_s", 0.0) for info in infos),
        images_per_s=fmean(speeds) if speeds else None,
        reason=next(filter(None, reasons), ""),
        changes=first["changes"],
    )


def _accuracy(
    rows: list[dict[str, float]], counts: list[int]
) -> tuple[float | None, float | None, float | None]:
    """Return the accuracy over the images of all folds, and the ends of its 95 % interval."""
    if not rows or not all("val/acc1" in row for row in rows) or not all(counts):
        return None, None, None
    hits = sum(round(row["val/acc1"] * n) for row, n in zip(rows, counts, strict=True))
    low, high = confidence_interval(hits, sum(counts))
    exact = rows[0]["val/acc1"] if len(rows) == 1 else hits / sum(counts)
    return exact, low, high


def winners(board: list[LeaderboardEntry]) -> dict[str, LeaderboardEntry]:
    """Return the best entry of each architecture that has one, the best architecture first."""
    best: dict[str, LeaderboardEntry] = {}
    for entry in board:
        if entry.metric is not None and entry.state != "failed":
            best.setdefault(entry.architecture, entry)
    return best


def to_tree(search: Search, board: list[LeaderboardEntry]) -> dict[str, Any]:
    """Return the content of leaderboard.json."""
    best = winners(board)
    return {
        "metric": search.spec.tune.metric,
        "winners": {name: entry.trial for name, entry in best.items()},
        "overall": next((entry.trial for entry in best.values()), None),
        "trials": [asdict(entry) for entry in board],
    }


def write_leaderboard(search: Search) -> list[LeaderboardEntry]:
    """Write the leaderboard and the winners' jobs into the folder; return the leaderboard."""
    board = leaderboard(search)
    _write_csv(search, board)
    for name, entry in winners(board).items():
        job = search.trial(_trial_ids(search, entry)[0]).run.job()
        # With `tune.folds` the fold is the search's; else it is the job's own.
        search.write_best(name, job.change({"data.fold": None}) if search.spec.tune.folds else job)
    # Last, for `is_written`.
    write_json(search.folder / "leaderboard.json", to_tree(search, board))
    return board


def is_written(search: Search) -> bool:
    """Return whether `write_leaderboard` has written the state of all trials."""
    current = json.loads(json.dumps(to_tree(search, leaderboard(search))))
    return read_json(search.folder / "leaderboard.json") == current


def _write_csv(search: Search, board: list[LeaderboardEntry]) -> None:
    keys = sorted({key for entry in board for key in entry.changes})
    columns = [key for key in LeaderboardEntry.__dataclass_fields__ if key != "changes"] + keys
    path = search.folder / "leaderboard.csv"
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for entry in board:
            flat = asdict(entry)
            table.writerow({**flat.pop("changes"), **flat})
