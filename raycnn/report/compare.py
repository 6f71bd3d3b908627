"""Render a comparison of runs (see analysis/compare.py) as an HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from raycnn.analysis.compare import ComparedRun, Comparison
from raycnn.report import page, style
from raycnn.report.figures import MAX_POINTS, short
from raycnn.report.style import SERIES
from raycnn.training.main_metric import train_metric, val_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CLASSES = 40  # those that differ most, in the table and the figure


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page of a comparison. Raises OSError."""
    names = [run.name for run in comparison.runs]
    with style.styled():
        values = _values(comparison)
    page.save_page(
        path, page.render("compare.html", f"{' and '.join(names[:3])} · raycnn", **values)
    )


def _values(comparison: Comparison) -> dict[str, Any]:
    classes = list(comparison.classes.items())[:MAX_CLASSES]
    return {
        "comparison": comparison,
        "colors": [color_of(index) for index in range(len(comparison.runs))],
        "differing": [
            (key, [page.plain(value) for value in row]) for key, row in comparison.differing.items()
        ],
        "curves": _curves(comparison.runs),
        "classes": classes,
        "class_plot": _classes(comparison, classes)
        if classes and len(comparison.runs) <= 7
        else None,
        "grouped": any(len(group.runs) > 1 for group in comparison.groups),
    }


def color_of(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _curves(runs: Sequence[ComparedRun]) -> list[Markup]:
    """Plot validation accuracy, or else training accuracy, by epoch and by training time."""
    figures = []
    for key, label in (("epoch", "epoch"), ("time_s", "seconds of training")):

        def plot(axes: "Axes", key: str = key, label: str = label) -> None:
            for index, run in enumerate(runs):
                metric = _curve_metric(run)
                rows = [row for row in run.rows if metric in row and key in row]
                rows = rows[:: max(1, -(-len(rows) // MAX_POINTS))]
                axes.plot(
                    [row[key] for row in rows], [100 * row[metric] for row in rows],
                    color=color_of(index), label=run.name, marker="o", markersize=2.5,
                    ls="-" if index < len(SERIES) else "--",
                )  # fmt: skip
            axes.set(xlabel=label, title=f"{_curve_title(runs)} (%) by {label.split()[0]}")
            axes.legend(loc="lower right")

        if any(run.rows for run in runs):
            title = f"{_curve_title(runs)} by {key}"
            figures.append(Markup(style.svg(style.render_figure(plot), title)))
    return figures


def _curve_metric(run: ComparedRun) -> str:
    last = run.rows[-1] if run.rows else {}
    return val_metric(last) or train_metric(last)


def _curve_title(runs: Sequence[ComparedRun]) -> str:
    multi_label = any(_curve_metric(run) == "val/map" for run in runs)
    return "Validation mAP" if multi_label else "Validation accuracy"


def _classes(comparison: Comparison, classes: Sequence[tuple[str, list[float]]]) -> Markup:
    """Plot the recall of each class in each run, as dots on a line."""

    def plot(axes: "Axes") -> None:
        for line, (_, recalls) in enumerate(classes):
            low, high = 100 * min(recalls), 100 * max(recalls)
            axes.plot([low, high], [line, line], color=style.LINE, lw=3, zorder=1)
        for index, run in enumerate(comparison.runs):
            points = [100 * recalls[index] for _, recalls in classes]
            axes.scatter(
                points, range(len(classes)), 26, color=color_of(index), label=run.name,
                zorder=2, alpha=0.9, lw=0,
            )  # fmt: skip
        axes.set_yticks(range(len(classes)), [short(name) for name, _ in classes])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(title="Recall of each class (%)")

    return Markup(
        style.svg(style.render_figure(plot, (4.8, 1.1 + 0.24 * len(classes))), "Recall by class")
    )
