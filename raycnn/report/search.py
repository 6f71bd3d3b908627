"""The report of a search: report.html, and its figures as PNGs, in the search folder."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raycnn.config.schema import JobSpec
from raycnn.config.search import Architecture, Domain
from raycnn.report import page, style
from raycnn.report.style import INK, MUTED, SERIES, SOFT
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry, entry_rows, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Board = Sequence[LeaderboardEntry]
Plot = Callable[["Axes", Search, Board], bool]

FILE = "report.html"
MIN_TRIALS = 5  # of an architecture, to estimate the importance of its settings
MAX_ROWS = 200  # of the leaderboard on the page
TITLES = {
    "lr": "Learning rate", "epochs": "Epochs", "curves": "Every trial, epoch by epoch",
    "importance": "What mattered", "pareto": "Quality against time",
}  # fmt: skip

log = logging.getLogger("raycnn")


def write_search_report_or_warn(
    search: Search, board: Board, warn: Callable[[str], None] = log.warning
) -> None:
    """Write the report of a finished search; an error is only a warning."""
    try:
        write_search_report(search, board)
    except Exception as error:
        log.warning("the report is not written", exc_info=error)
        again = f"`raycnn report {quote(str(search.location))}` tries again"
        warn(f"the report is not written: {error}; {again}")


def write_search_report(search: Search, board: Board) -> Path:
    """Write report.html and the PNGs; return the page's path. Raises OSError."""
    plots = _plots(search, board)
    best = winners(list(board))
    overall = next(iter(best.values()), None)
    values: dict[str, Any] = {
        "search": search, "name": search.name, "state": search.state(), "tune": search.spec.tune,
        "metric": _metric_title(search), "is_accuracy": _is_accuracy(search),
        "board": board[:MAX_ROWS], "count": len(board),
        "configurations": len({(t.architecture.name, t.number) for t in search.spec.trials()}),
        "best": best, "overall": overall,
        "plots": plots, "colors": dict(_colors(search)),
        "spaces": [_space(search, a, board) for a in search.spec.architectures],
        "ended_early": [e for e in board if e.state != "done"][:MAX_ROWS],
        "yaml": _yaml(search, overall), "seconds": sum(entry.seconds for entry in board),
        "commands": _commands(search, overall),
    }  # fmt: skip
    page.save_page(
        search.folder / FILE, page.render("search.html", f"{search.name} · raycnn", **values)
    )
    return search.folder / FILE


def _plots(search: Search, board: Board) -> dict[str, Markup]:
    """Plot all figures that have data, for the page and as PNGs."""
    measured = [entry for entry in board if entry.metric is not None]
    plots: dict[str, Plot] = {
        "curves": _curves,
        "importance": _importance,
        "lr": partial(_against, key="optimizer.lr", log=True),
        "epochs": partial(_against, key="train.epochs", log=False),
        "pareto": _pareto,
    }
    figures = {}
    with style.styled():
        for name, plot in plots.items():
            path = search.folder / f"{name}.png"
            path.unlink(missing_ok=True)
            shown = False

            def show(axes: "Axes", plot: Plot = plot) -> None:
                nonlocal shown
                shown = plot(axes, search, measured)

            if measured:
                figure = style.render_figure(show)
                if shown:
                    figures[name] = Markup(style.svg(figure, TITLES[name]))
                    style.save_png(figure, path)
    return figures


def _is_accuracy(search: Search) -> bool:
    return "loss" not in search.spec.tune.metric


def _metric_title(search: Search) -> str:
    names = {
        "val/acc1": "validation accuracy", "val/acc5": "validation top-5 accuracy",
        "val/loss": "validation loss", "train/acc1": "training accuracy",
        "train/loss": "training loss", "val/map": "validation mAP", "val/f1": "validation micro F1",
        "val/f1_macro": "validation macro F1", "train/f1": "training micro F1",
    }  # fmt: skip
    metric = search.spec.tune.metric
    return names.get(metric, metric)


def _label(search: Search) -> str:
    return _metric_title(search) + (" (%)" if _is_accuracy(search) else "")


def _scaled(search: Search, value: float | None) -> float:
    return (value or 0.0) * (100 if _is_accuracy(search) else 1)


def _colors(search: Search) -> Iterator[tuple[str, str]]:
    """Yield each architecture with its color, the same in all figures."""
    for index, architecture in enumerate(search.spec.architectures):
        yield architecture.name, SERIES[index % len(SERIES)]


def _points(
    axes: "Axes", search: Search, board: Board, x: Callable[[LeaderboardEntry], float]
) -> None:
    """Plot a dot for each trial: hollow if it was stopped early, ringed for the winner."""
    overall = next(iter(winners(list(board)).values()), None)
    for name, color in _colors(search):
        entries = [entry for entry in board if entry.architecture == name]
        for done in (True, False):
            subset = [entry for entry in entries if (entry.state == "done") is done]
            if subset:
                axes.scatter(
                    [x(entry) for entry in subset],
                    [_scaled(search, entry.metric) for entry in subset], 30, alpha=0.8,
                    facecolors=color if done else "none", edgecolors=color, linewidths=1.2,
                    label=name if done else f"{name}, ended early",
                )  # fmt: skip
    if overall:
        axes.scatter(
            [x(overall)], [_scaled(search, overall.metric)], 130, facecolors="none",
            edgecolors=INK, linewidths=1.4, label=f"best, {overall.trial}",
        )  # fmt: skip


def _against(axes: "Axes", search: Search, board: Board, key: str, log: bool) -> bool:
    """Plot the metric against one setting."""
    jobs = {a.name: a.job for a in search.spec.architectures}
    values = {e.trial: value_of(jobs[e.architecture], e, key) for e in board}
    if not all(isinstance(value, int | float) for value in values.values()):
        return False
    if len(set(values.values())) < 2:
        return False
    _points(axes, search, board, lambda entry: float(values[entry.trial]))
    if log:
        _plain_log(axes)
    axes.set(xlabel=key, title=f"{TITLES['lr' if log else 'epochs']}: {_label(search)}")
    _legend_below(axes)
    return True


def _legend_below(axes: "Axes") -> None:
    """Place the legend below the axes: anywhere in them it may cover a trial."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _plain_log(axes: "Axes") -> None:
    """Make the x axis logarithmic, with plain numbers as tick labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0,) if high / max(low, 1e-300) > 100 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def value_of(job: JobSpec, entry: LeaderboardEntry, key: str) -> Any:
    """Return a trial's value of a dotted key: its own change, or else the job's setting."""
    if key in entry.changes:
        return entry.changes[key]
    value: Any = job.tree()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _curves(axes: "Axes", search: Search, board: Board) -> bool:
    """Plot the learning curve of each trial, with the best of each architecture emphasized."""
    metric = search.spec.tune.metric
    best = {entry.trial for entry in winners(list(board)).values()}
    colors = dict(_colors(search))
    for entry in reversed(board):
        leads, color = entry.trial in best, colors[entry.architecture]
        rows = [row for row in entry_rows(search, entry) if metric in row]
        axes.plot(
            [row["epoch"] for row in rows], [_scaled(search, row[metric]) for row in rows],
            color=color, label=entry.trial if leads else None, linewidth=2.2 if leads else 0.9,
            alpha=1.0 if leads else 0.45, marker="." if len(rows) < 20 else None,
            zorder=3 if leads else 2,
        )  # fmt: skip
        if rows and entry.state != "done":
            axes.plot(
                rows[-1]["epoch"], _scaled(search, rows[-1][metric]), "x", color=color,
                markersize=5, markeredgewidth=1.4,
            )  # fmt: skip
    if any(entry.state != "done" for entry in board):
        axes.plot([], [], "x", color=SOFT, label="ended early")
    axes.set(xlabel="epoch", title=f"Every trial: {_label(search)}")
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    return True


def _importance(axes: "Axes", search: Search, board: Board) -> bool:
    """Plot the importance of each key for the metric, by architecture."""
    shown = {}
    for name, color in _colors(search):
        entries = [entry for entry in board if entry.architecture == name]
        if shares := importance(entries):
            shown[name] = (color, shares)
    keys = sorted({key for _, shares in shown.values() for key in shares})
    if len(keys) < 2:
        return False
    height = 0.8 / len(shown)
    for index, (name, (color, shares)) in enumerate(shown.items()):
        places = np.arange(len(keys)) + index * height
        axes.barh(
            places, [100 * shares.get(k, 0.0) for k in keys], 0.9 * height, color=color, label=name
        )
    axes.set_yticks(np.arange(len(keys)) + 0.4 - height / 2, keys)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="share of the variation explained (%, random forest)", title="What mattered")
    axes.legend()
    return True


def importance(board: Board) -> dict[str, float]:
    """Return the importance of each key over trials of one architecture, summing to 1.

    Impurity decrease in a random forest (Breiman, Machine Learning 45 (2001), pages 5 to 32).
    Returns {} for too few trials, or without variation.
    """
    if len(board) < MIN_TRIALS:
        return {}
    keys = [key for key in board[0].changes if len({str(e.changes[key]) for e in board}) > 1]
    metrics = np.array([entry.metric for entry in board], np.float64)
    if not keys or np.ptp(metrics) == 0:
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


def _pareto(axes: "Axes", search: Search, board: Board) -> bool:
    """Plot the metric against training time, with the Pareto front."""
    board = [entry for entry in board if entry.seconds > 0]
    if not board:
        return False
    best = front(list(board), search.spec.tune.sign)
    axes.plot(
        [entry.seconds for entry in best], [_scaled(search, entry.metric) for entry in best],
        color=MUTED, ls=(0, (3, 3)), linewidth=1, drawstyle="steps-post", zorder=1,
        label="none is better and quicker",
    )  # fmt: skip
    _points(axes, search, board, lambda entry: entry.seconds)
    _plain_log(axes)
    axes.set(xlabel="seconds of a trial", title=f"Quality against time: {_label(search)}")
    _legend_below(axes)
    return True


def front(board: list[LeaderboardEntry], sign: int) -> list[LeaderboardEntry]:
    """Return the Pareto front, fastest first: each entry is better than all faster ones."""
    best: list[LeaderboardEntry] = []
    for entry in sorted(board, key=lambda e: (e.seconds, -sign * (e.metric or 0.0))):
        if not best or sign * (entry.metric or 0.0) > sign * (best[-1].metric or 0.0):
            best.append(entry)
    return best


@dataclass(frozen=True)
class Strip:
    """One key of a search space, with the positions of the trials' values and the best value."""

    key: str
    kind: str
    ends: list[str]
    places: list[float]
    """The positions of all trials, from 0 to 1."""
    best: float | None
    value: str
    """The value of the best trial."""
    at_edge: bool
    """Whether the best value is so close to an end that the space may be too narrow."""


def _space(search: Search, architecture: Architecture, board: Board) -> tuple[str, list[Strip]]:
    entries = [entry for entry in board if entry.architecture == architecture.name]
    winner = winners(entries).get(architecture.name)
    strips = []
    for key, domain in architecture.space.items():
        places = [p for e in entries if (p := place_in(domain, e.changes.get(key))) is not None]
        value = winner.changes.get(key) if winner else None
        best = place_in(domain, value)
        ranged = domain.kind not in ("choice", "grid")
        strips.append(
            Strip(
                key, domain.kind, [page.plain(end) for end in domain.ends], places, best,
                "" if value is None else page.plain(value),
                ranged and best is not None and len(entries) > 3 and not 0.05 < best < 0.95,
            )
        )  # fmt: skip
    return architecture.name, strips


def place_in(domain: Domain, value: Any) -> float | None:
    """Return the position of a value in its domain, from 0 to 1; None if it is outside."""
    if domain.kind in ("choice", "grid"):
        if value not in domain.ends:
            return None
        return (domain.ends.index(value) + 0.5) / len(domain.ends)
    if not isinstance(value, int | float):
        return None
    low, high = domain.ends
    if domain.kind == "loguniform":
        position = math.log(value / low) / math.log(high / low) if value > 0 else 0.0
    else:
        position = (value - low) / (high - low)
    return min(1.0, max(0.0, position))


def _yaml(search: Search, overall: LeaderboardEntry | None) -> str:
    if not overall:
        return ""
    path = search.best_job_path(overall.architecture)
    return path.read_text() if path.is_file() else ""


def _commands(search: Search, overall: LeaderboardEntry | None) -> list[tuple[str, str]]:
    commands = []
    if search.unfinished():
        name = quote(str(search.location)) if search.copy else search.name
        commands.append((f"raycnn tune --resume {name}", "train what is left"))
    if overall:
        job = f"best-{overall.architecture}.yaml"
        commands.append((f"raycnn train {job}", "the winner, with a test; the file is beside this"))
        all_images = "data.val=0 data.fold=null train.patience=null"
        commands.append((f"raycnn train {job} {all_images}", "on the held-out images too"))
    return commands
