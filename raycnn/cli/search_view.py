"""What a person sees of a search: one calm live table on a terminal, plain lines otherwise."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typing_extensions import Self

from raycnn.search.folder import Search, Trial
from raycnn.search.leaderboard import LeaderboardEntry, SearchProgress

SHOWN = 10  # trials of the leaderboard on the terminal


class PlainSearchView:
    """A line for each trial that ends."""

    def __init__(self, console: Console):
        self.console = console
        self.standing: SearchProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        pass

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def show(self, search: Search, under_way: list[str]) -> None:
        if self.standing is None:
            self.standing = SearchProgress(search)
            self.standing.look()  # what had ended before is not told again
        before, of = len(self.standing.ended), len(self.standing.wanted)
        for number, entry in enumerate(self.standing.look(), before + 1):
            self.note(f"{number}/{of}  {line(entry)}")


class LiveSearchView(PlainSearchView):
    """A table of the architectures over the trials under way."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self.live.stop()

    def note(self, text: str) -> None:
        self.live.console.print(text, style="dim", highlight=False, markup=False)

    def show(self, search: Search, under_way: list[str]) -> None:
        self.standing = self.standing or SearchProgress(search)
        self.standing.look()
        self.live.update(picture(self.standing, search, under_way))


def picture(standing: SearchProgress, search: Search, under_way: list[str]) -> Group:
    table = Table("architecture", "trials", "done", "stopped", "failed", "best", "with", box=None)
    best = standing.best()
    for architecture in search.spec.architectures:
        name = architecture.name
        states = [entry.state for entry in standing.ended.values() if entry.architecture == name]
        counts = [str(states.count(state)) for state in ("done", "stopped", "failed")]
        trials = str(architecture.trials(search.spec.tune.trials))
        won = [_metric(best[name]), changes(best[name])] if name in best else ["", ""]
        table.add_row(name, trials, *counts, *won)
    return Group(table, *map(Text, _under_way(search, under_way)), Text(_left(standing, under_way)))


def _under_way(search: Search, ids: list[str]) -> Iterator[str]:
    for name in ids:
        trial = Trial(search.folder / "trials" / name)
        rows = trial.rows()
        value = rows[-1].get(search.spec.tune.metric) if rows else None
        last = f"  {search.spec.tune.metric} {value:.4g}" if value is not None else ""
        yield f"  {name}  epoch {len(rows)}/{trial.facts.get('epochs', 0)}{last}"


def _left(standing: SearchProgress, under_way: list[str]) -> str:
    left = standing.left_s(len(under_way))
    ended = f"{len(standing.ended)} of {len(standing.wanted)} trials have ended"
    return f"{ended}, about {duration(left)} left" if left else ended


def line(entry: LeaderboardEntry) -> str:
    """A trial in one line."""
    parts = [f"{entry.trial:<20} {entry.state:<10}", f"{_metric(entry):>8}"]
    if entry.low is not None and entry.high is not None:
        parts.append(f"({entry.low:.2%} to {entry.high:.2%})")
    parts.append(f"{entry.epochs}/{entry.of_epochs} epochs {entry.seconds:.1f} s {entry.device}")
    if entry.images_per_s:
        parts.append(f"{entry.images_per_s:,.0f} images/s")
    parts.append(changes(entry))
    if entry.reason and entry.state != "stopped":
        parts.append(entry.reason.partition("\n")[0])
    return "  ".join(parts)


def changes(entry: LeaderboardEntry) -> str:
    return " ".join(f"{key}={value}" for key, value in entry.changes.items())


def _metric(entry: LeaderboardEntry) -> str:
    if entry.metric is None:
        return "-"
    return f"{entry.metric:.2%}" if entry.metric == entry.val_acc1 else f"{entry.metric:.4g}"


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def search_view_for(console: Console) -> PlainSearchView:
    return LiveSearchView(console) if console.is_terminal else PlainSearchView(console)


def show_board(
    console: Console, search: Search, board: list[LeaderboardEntry], best: dict[str, Any]
) -> None:
    """The leaderboard, the winner of each architecture, and where all of it lies."""
    console.print(f"{search.spec.tune.metric}, best first:", style="bold", highlight=False)
    for entry in board[:SHOWN]:
        console.print(line(entry), soft_wrap=True, highlight=False, markup=False)
    if len(board) > SHOWN:
        console.print(f"... and {len(board) - SHOWN} more, in leaderboard.csv", highlight=False)
    for name, entry in best.items():
        said = f"best {name}: {_metric(entry)} with {changes(entry)}: {search.best_job(name)}"
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{search.folder}", soft_wrap=True, highlight=False)
