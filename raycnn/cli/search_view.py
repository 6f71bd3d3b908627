"""The view of a search: a live table on a terminal, plain lines otherwise."""

import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.text import Text
from typing_extensions import Self

from raycnn.config.yaml_file import Tree
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry, ranked, trial_entry, winners

MAX_ENTRIES = 10  # of the leaderboard on the terminal
DROPPED_FIRST = ("epochs", "time", "95 %")  # columns left out of a narrow leaderboard, in turn


class SearchProgress:
    """Tracks the progress of a search, reading each ended trial once."""

    def __init__(self, search: Search):
        self.search = search
        self.trials = {key.id: key.architecture.name for key in search.spec.trials()}
        self.ended: dict[str, LeaderboardEntry] = {}

    def update(self) -> list[LeaderboardEntry]:
        """Return the entries of the trials that ended since the last update."""
        new = []
        for name in self.trials:
            trial = self.search.trial(name)
            if name not in self.ended and trial.ended:
                self.ended[name] = trial_entry(self.search, trial)
                new.append(self.ended[name])
        return new

    def best(self) -> dict[str, LeaderboardEntry]:
        """Return the best ended trial of each architecture."""
        return winners(ranked(list(self.ended.values()), self.search.spec.tune.sign))

    def remaining_s(self, concurrency: int) -> float | None:
        """Estimate the remaining seconds from the ended trials; None while that is not possible."""
        seconds_by_architecture: dict[str, list[float]] = {}
        for entry in self.ended.values():
            seconds_by_architecture.setdefault(entry.architecture, []).append(entry.seconds)
        unfinished = [
            architecture for name, architecture in self.trials.items() if name not in self.ended
        ]
        if not concurrency or not set(unfinished) <= seconds_by_architecture.keys():
            return None
        expected_s = sum(fmean(seconds_by_architecture[name]) for name in unfinished)
        return expected_s / concurrency


class PlainSearchView:
    """Prints a line for each trial that ends."""

    def __init__(self, console: Console):
        self.console = console
        self.progress: SearchProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        pass

    def log(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def show(self, search: Search, running: list[str]) -> None:
        if self.progress is None:
            self.progress = SearchProgress(search)
            self.progress.update()  # skip trials that had ended before
        ended, total = len(self.progress.ended), len(self.progress.trials)
        for number, entry in enumerate(self.progress.update(), ended + 1):
            row = Text(
                f"{number:>{len(str(total))}}/{total}  {trial_line(entry, search.spec.tune.metric)}"
            )
            self.console.print(row, no_wrap=True, overflow="ellipsis")


class LiveSearchView(PlainSearchView):
    """Shows a live table of the architectures, and the running trials."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self.live.stop()

    def log(self, text: str) -> None:
        self.live.console.print(text, style="dim", highlight=False, markup=False)

    def show(self, search: Search, running: list[str]) -> None:
        self.progress = self.progress or SearchProgress(search)
        self.progress.update()
        self.live.update(progress_table(self.progress, search, running))


def search_view_for(console: Console) -> PlainSearchView:
    return LiveSearchView(console) if console.is_terminal else PlainSearchView(console)


def progress_table(progress: SearchProgress, search: Search, running: list[str]) -> Text:
    """Return the progress of each architecture, the running trials, and the remaining time."""
    best, metric = progress.best(), search.spec.tune.metric
    rows = [["architecture", "trials", "done", "stopped", "failed", "best", "with"]]
    for architecture in search.spec.architectures:
        name = architecture.name
        trials = list(progress.trials.values()).count(name)
        states = [entry.state for entry in progress.ended.values() if entry.architecture == name]
        counts = [str(states.count(state)) for state in ("done", "stopped", "failed")]
        winner = best.get(name)
        reached = (
            [metric_text(winner, metric), changes_text(winner.changes)] if winner else ["", ""]
        )
        rows.append([name, str(trials), *counts, *reached])
    lines = [*_aligned(rows), *_running(search, running), _remaining(progress, running)]
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _running(search: Search, ids: list[str]) -> Iterator[str]:
    for name in ids:
        trial = search.trial(name)
        rows = trial.rows()
        value = rows[-1].get(search.spec.tune.metric) if rows else None
        last = f"  {search.spec.tune.metric} {value:.4g}" if value is not None else ""
        yield f"  {name}  epoch {len(rows)}/{trial.info.get('epochs', 0)}{last}"


def _remaining(progress: SearchProgress, running: list[str]) -> str:
    remaining = progress.remaining_s(len(running))
    ended = f"{len(progress.ended)} of {len(progress.trials)} trials have ended"
    return f"{ended}, about {rounded_duration(remaining)} left" if remaining else ended


def show_leaderboard(console: Console, search: Search, board: list[LeaderboardEntry]) -> None:
    """Print the leaderboard, one line per row, the best last so that it stays visible."""
    shown, metric = board[:MAX_ENTRIES], search.spec.tune.metric
    console.print(f"{metric}, best last:", style="bold", highlight=False)
    if len(board) > MAX_ENTRIES:
        console.print(f"... {len(board) - MAX_ENTRIES} more in leaderboard.csv", highlight=False)
    rows = [["", "trial", "state", "best", "95 %", "epochs", "time", "with"]]
    for rank, entry in reversed(list(enumerate(shown, 1))):
        has_interval = entry.low is not None and entry.high is not None
        rows.append([
            str(rank), entry.trial, entry.state, metric_text(entry, metric),
            f"{entry.low:.1%} to {entry.high:.1%}".replace("% to", " to") if has_interval else "",
            f"{entry.epochs}/{entry.of_epochs}", rounded_duration(entry.seconds),
            changes_text(entry.changes),
        ])  # fmt: skip
    for row in _fitted(rows, console.width):
        console.print(Text(row), no_wrap=True, overflow="ellipsis")
    for entry in winners(board).values():
        best = f"best {entry.architecture}: {entry.trial}, {metric_text(entry, metric)}"
        path = relative(search.best_job_path(entry.architecture))
        console.print(f"{best}: {path}", soft_wrap=True, highlight=False, markup=False)


def show_next(console: Console, search: Search, board: list[LeaderboardEntry]) -> None:
    """Print the location of a search, and the next commands."""
    location = search.location if search.copy else relative(search.folder)
    console.print(f"plots and tables: {location}", soft_wrap=True, highlight=False, markup=False)
    name, commands = quote(str(location)), []
    if unfinished := len(search.unfinished()):
        commands.append(f"raycnn tune --resume {name}  # {unfinished} trials have not ended")
    elif best := next(iter(winners(board)), None):
        commands.append(
            f"raycnn train {quote(relative(search.best_job_path(best)))}  # the best again, tested"
        )
        commands.append(f"raycnn tune --resume {name} --retrain  # on all images, tested")
    for command in commands:
        console.print(f"next: {command}", soft_wrap=True, highlight=False, markup=False)


def trial_line(entry: LeaderboardEntry, metric: str) -> str:
    """Return one line about an ended trial."""
    name = f"{entry.trial:<12} {entry.state:<7}"
    if entry.state == "failed":
        return f"{name} {entry.reason.partition(chr(10))[0]}"
    epochs = f"{entry.epochs}/{entry.of_epochs} epochs {rounded_duration(entry.seconds)}"
    return f"{name} {metric_text(entry, metric):>7}  {epochs}  {changes_text(entry.changes)}"


def changes_text(changes: Tree) -> str:
    """Return changes as `lr=0.1 epochs=5`: keys without their section, unless ambiguous."""
    ends = [key.rpartition(".")[2] for key in changes]
    short = {
        key: end if ends.count(end) == 1 else key for key, end in zip(changes, ends, strict=True)
    }
    return " ".join(f"{short[key]}={_value_text(value)}" for key, value in changes.items())


def _value_text(value: object) -> str:
    if isinstance(value, dict) and "name" in value:
        options = ",".join(f"{k}={v}" for k, v in value.items() if k != "name" and v is not None)
        return f"{value['name']}({options})" if options else str(value["name"])
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metric_text(entry: LeaderboardEntry, metric: str) -> str:
    """Return the metric as text, accuracies in percent; with folds mean ± standard deviation."""
    if entry.metric is None:
        return "-"
    form = ".2%" if "acc" in metric else ".4g"
    spread = "" if entry.deviation is None else f" ± {entry.deviation:{form}}"
    return f"{entry.metric:{form}}{spread}"


def rounded_duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def relative(path: Path) -> str:
    """Return the shorter of a path and its form relative to the working directory."""
    return min(os.path.relpath(path), str(path), key=len)


def _fitted(rows: list[list[str]], width: int) -> list[str]:
    """Return aligned lines, without the columns that would push the changes out of `width`."""
    for name in DROPPED_FIRST:
        if max(map(len, _aligned(rows))) <= width:
            break
        index = rows[0].index(name)
        rows = [row[:index] + row[index + 1 :] for row in rows]
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
