"""The leaderboard: what every trial came to, best first, and the winners' jobs."""

import csv
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from raycnn import io
from raycnn.config.yaml_file import Tree
from raycnn.search.folder import Search, Trial
from raycnn.training.metrics import confidence_interval


@dataclass(frozen=True)
class LeaderboardEntry:
    """A trial as the leaderboard shows it; None is what is not known."""

    trial: str
    architecture: str
    device: str
    """The kind that it was last trained on."""
    state: str
    """done, stopped (by the scheduler), failed, or unfinished."""
    metric: float | None
    """The search's own, in the best epoch."""
    val_acc1: float | None
    """In that epoch."""
    low: float | None
    """Of the 95 % interval of val_acc1."""
    high: float | None
    epochs: int
    """Done, of all that the trial was to have."""
    of_epochs: int
    parameters: int | None
    seconds: float
    """From its beginning to its end, without waiting for a place."""
    images_per_s: float | None
    """In training, on average over the epochs."""
    reason: str
    """Why it did not come to its end; of a member of a population, whose copy it went on from."""
    changes: Tree


class SearchProgress:
    """How far a search is, looked at again and again: what has ended is read once."""

    def __init__(self, search: Search):
        self.search = search
        self.wanted = [(a.name, search.trial(a, number)) for a, number in search.wanted()]
        self.ended: dict[str, LeaderboardEntry] = {}

    def look(self) -> list[LeaderboardEntry]:
        """Those that ended since the last look."""
        tune, new = self.search.spec.tune, []
        for _, trial in self.wanted:
            if trial.id not in self.ended and trial.ended:
                new.append(_entry(trial, tune.metric, tune.sign))
                self.ended[trial.id] = new[-1]
        return new

    def best(self) -> dict[str, LeaderboardEntry]:
        """Of every architecture, among those that have ended."""
        return winners(ranked(list(self.ended.values()), self.search.spec.tune.sign))

    def left_s(self, at_once: int) -> float | None:
        """Until all have ended, if they take as long as the others of their architecture did."""
        took: dict[str, list[float]] = {}
        for entry in self.ended.values():
            took.setdefault(entry.architecture, []).append(entry.seconds)
        left = [name for name, trial in self.wanted if trial.id not in self.ended]
        if not at_once or not set(left) <= took.keys():
            return None
        return sum(fmean(took[name]) for name in left) / at_once


def leaderboard(search: Search) -> list[LeaderboardEntry]:
    """Best first; those without a metric last, and failed ones after them."""
    sign = search.spec.tune.sign
    found = [_entry(trial, search.spec.tune.metric, sign) for trial in search.trials()]
    return ranked(found, sign)


def ranked(entries: list[LeaderboardEntry], sign: int) -> list[LeaderboardEntry]:
    def merit(entry: LeaderboardEntry) -> tuple[bool, bool, float]:
        known = entry.metric is not None
        return entry.state != "failed", known, sign * (entry.metric or 0.0)

    return sorted(entries, key=merit, reverse=True)


def _entry(trial: Trial, metric: str, sign: int) -> LeaderboardEntry:
    facts = trial.facts
    rows = [row for row in trial.rows() if metric in row]
    best = max(rows, key=lambda row: sign * row[metric], default={})
    count, acc1 = facts.get("val_images", 0), best.get("val/acc1")
    low, high = (
        confidence_interval(round(acc1 * count), count) if acc1 is not None else (None, None)
    )
    return LeaderboardEntry(
        trial=trial.id,
        architecture=facts["architecture"],
        device=facts.get("device", ""),
        state=facts.get("state", "unfinished"),
        metric=best.get(metric),
        val_acc1=acc1,
        low=low,
        high=high,
        epochs=len(rows),
        of_epochs=facts["epochs"],
        parameters=facts.get("parameters"),
        seconds=facts.get("wall_s", 0.0),
        images_per_s=fmean(row["images_per_s"] for row in rows) if rows else None,
        reason=facts.get("reason") or facts.get("descent", ""),
        changes=facts["changes"],
    )


def winners(board: list[LeaderboardEntry]) -> dict[str, LeaderboardEntry]:
    """The best trial of every architecture that has one, best architecture first."""
    best: dict[str, LeaderboardEntry] = {}
    for entry in board:
        if entry.metric is not None and entry.state != "failed":
            best.setdefault(entry.architecture, entry)
    return best


def write(search: Search) -> list[LeaderboardEntry]:
    """Put the leaderboard and the winners' jobs into the folder; returns the leaderboard."""
    board = leaderboard(search)
    best = winners(board)
    shown: dict[str, Any] = {
        "metric": search.spec.tune.metric,
        "winners": {name: entry.trial for name, entry in best.items()},
        "overall": next((entry.trial for entry in best.values()), None),
        "trials": [asdict(entry) for entry in board],
    }
    io.write_json(search.folder / "leaderboard.json", shown)
    keys = sorted({key for entry in board for key in entry.changes})
    columns = [key for key in LeaderboardEntry.__dataclass_fields__ if key != "changes"] + keys
    with (
        io.atomic_path(search.folder / "leaderboard.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for entry in board:
            flat = asdict(entry)
            table.writerow({**flat.pop("changes"), **flat})
    for name, entry in best.items():
        search.write_best(name, Trial(search.folder / "trials" / entry.trial).run.job())
    return board
