"""Pictures of a search: PNGs in its folder, each drawn where there is something to show."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raycnn.config.schema import JobSpec
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry, entry_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = Callable[["Axes", Search, list[LeaderboardEntry]], bool]

SIZE = (8.0, 5.0)  # inches
DPI = 120
FEWEST = 5  # trials of an architecture, to say what mattered in them


def draw(search: Search, board: list[LeaderboardEntry]) -> list[Path]:
    """lr, epochs, curves, importance and pareto .png; returns those there was something for."""
    known = [entry for entry in board if entry.metric is not None]
    drawn = []
    pictures: dict[str, Picture] = {
        "lr": partial(_against, key="optimizer.lr", log=True),
        "epochs": partial(_against, key="train.epochs", log=False),
        "curves": _curves,
        "importance": _importance,
        "pareto": _pareto,
    }
    for name, picture in pictures.items():
        path = search.folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if known and _draw(path, picture, search, known):
            drawn.append(path)
    return drawn


def _draw(path: Path, picture: Picture, search: Search, known: list[LeaderboardEntry]) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    shown = picture(figure.add_subplot(), search, known)
    if shown:
        figure.savefig(path, dpi=DPI)
    return shown


def _colours(search: Search) -> Iterator[tuple[str, str]]:
    """Of every architecture, whatever is in a picture."""
    for index, architecture in enumerate(search.spec.architectures):
        yield architecture.name, f"C{index % 10}"


def _against(
    axes: "Axes", search: Search, board: list[LeaderboardEntry], key: str, log: bool
) -> bool:
    """The metric against one setting."""
    jobs = {a.name: a.job for a in search.spec.architectures}
    values = [value_of(jobs[entry.architecture], entry, key) for entry in board]
    if not all(isinstance(value, int | float) for value in values) or len(set(values)) < 2:
        return False
    for name, colour in _colours(search):
        points = [
            (value, entry.metric)
            for value, entry in zip(values, board, strict=True)
            if entry.architecture == name
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), label=name, color=colour, alpha=0.7)
    if log:
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel=search.spec.tune.metric, title=f"{search.name}: best epoch")
    axes.grid(alpha=0.3)
    axes.legend()
    return True


def value_of(job: JobSpec, entry: LeaderboardEntry, key: str) -> Any:
    """What a trial had for a dotted key: its own change, or the job's setting."""
    if key in entry.changes:
        return entry.changes[key]
    value: Any = job.tree()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _curves(axes: "Axes", search: Search, board: list[LeaderboardEntry]) -> bool:
    """Every trial epoch by epoch; the best of each architecture is heavy."""
    metric = search.spec.tune.metric
    best: dict[str, str] = {}
    for entry in board:
        best.setdefault(entry.architecture, entry.trial)
    colours = dict(_colours(search))
    for entry in reversed(board):
        rows = [row for row in entry_rows(search, entry) if metric in row]
        leads = best[entry.architecture] == entry.trial
        axes.plot(
            [row["epoch"] for row in rows],
            [row[metric] for row in rows],
            color=colours[entry.architecture],
            label=entry.trial if leads else None,
            linewidth=2.5 if leads else 0.8,
            alpha=1.0 if leads else 0.4,
            marker="." if len(rows) < 20 else None,
        )
    axes.set(xlabel="epoch", ylabel=metric, title=f"{search.name}: all trials")
    axes.grid(alpha=0.3)
    axes.legend()
    return True


def _importance(axes: "Axes", search: Search, board: list[LeaderboardEntry]) -> bool:
    """How much of the metric's variation each key explains, for each architecture."""
    shown = {}
    for name, colour in _colours(search):
        own = [entry for entry in board if entry.architecture == name]
        if shares := importance(own):
            shown[name] = (colour, shares)
    keys = sorted({key for _, shares in shown.values() for key in shares})
    if len(keys) < 2:
        return False
    height = 0.8 / len(shown)
    for index, (name, (colour, shares)) in enumerate(shown.items()):
        places = np.arange(len(keys)) + index * height
        axes.barh(places, [shares.get(k, 0.0) for k in keys], height, color=colour, label=name)
    axes.set_yticks(np.arange(len(keys)) + 0.4 - height / 2, keys)
    axes.set(xlabel="share of the variation explained (random forest)", title=search.name)
    axes.legend()
    return True


def importance(board: list[LeaderboardEntry]) -> dict[str, float]:
    """Of the trials of one architecture, shares of each key, which add up to 1.

    Impurity decrease in a random forest; {} where there are too few trials, or nothing varies.
    """
    keys = [key for key in board[0].changes if len({str(e.changes[key]) for e in board}) > 1]
    metrics = np.array([entry.metric for entry in board], np.float64)
    if len(board) < FEWEST or not keys or np.ptp(metrics) == 0:
        return {}
    from sklearn.ensemble import RandomForestRegressor  # slow to import

    columns = np.stack([_numbers([entry.changes[key] for entry in board]) for key in keys], 1)
    forest = RandomForestRegressor(n_estimators=100, random_state=0).fit(columns, metrics)
    return dict(zip(keys, forest.feature_importances_.tolist(), strict=True))


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, np.float64)
    kinds = sorted({str(value) for value in values})
    return np.array([kinds.index(str(value)) for value in values], np.float64)


def _pareto(axes: "Axes", search: Search, board: list[LeaderboardEntry]) -> bool:
    """The metric against the time it took, and the trials that none beats in both."""
    board = [entry for entry in board if entry.seconds > 0]
    if not board:
        return False
    for name, colour in _colours(search):
        points = [(e.seconds, e.metric) for e in board if e.architecture == name]
        if points:
            axes.scatter(*zip(*points, strict=True), label=name, color=colour, alpha=0.7)
    best = front(board, search.spec.tune.sign)
    axes.plot(
        [entry.seconds for entry in best],
        [entry.metric or 0.0 for entry in best],
        "k--", linewidth=1, drawstyle="steps-post", label="none is better and quicker",
    )  # fmt: skip
    axes.set(xlabel="seconds", ylabel=search.spec.tune.metric, title=search.name, xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return True


def front(board: list[LeaderboardEntry], sign: int) -> list[LeaderboardEntry]:
    """The Pareto front, quickest first: each is better than all that are quicker."""
    found: list[LeaderboardEntry] = []
    for entry in sorted(board, key=lambda e: (e.seconds, -sign * (e.metric or 0.0))):
        if not found or sign * (entry.metric or 0.0) > sign * (found[-1].metric or 0.0):
            found.append(entry)
    return found
