"""Figures of a run: learning curves, confusion, reliability and coverage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raycnn.analysis.evaluate import Calibration
from raycnn.report.style import ACCENT, INK, LINE, MUTED, PAPER, SOFT, WARN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 500  # points of a curve
MAX_NAME = 14  # characters of a class name on an axis
Row = dict[str, float]


@dataclass(frozen=True)
class Mark:
    """An event marked on a learning curve."""

    epoch: float
    text: str
    serious: bool


def plot_curve(
    axes: "Axes", rows: Sequence[Row], metric: str, best: int | None, marks: Sequence[Mark]
) -> None:
    """Plot `loss`, `acc1`, `map` or `f1` by epoch, for training and validation, with events."""
    percent = 1 if metric == "loss" else 100
    shown = rows[:: max(1, -(-len(rows) // MAX_POINTS))]
    dot = "o" if len(shown) < 30 else None
    for split, color, label in (("train", SOFT, "training"), ("val", ACCENT, "validation")):
        measured = [row for row in shown if f"{split}/{metric}" in row]
        if measured:
            axes.plot(
                [row["epoch"] for row in measured],
                [percent * row[f"{split}/{metric}"] for row in measured],
                color=color, label=label, marker=dot, markersize=3,
            )  # fmt: skip
    for mark in marks:
        axes.axvline(mark.epoch, color=WARN if mark.serious else MUTED, lw=0.9, ls=(0, (2, 2)))
        axes.annotate(
            mark.text, (mark.epoch, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", rotation=90, va="top", fontsize=7,
            color=WARN if mark.serious else MUTED,
        )  # fmt: skip
    key = f"val/{metric}" if rows and f"val/{metric}" in rows[-1] else f"train/{metric}"
    if best and best <= len(rows):
        axes.plot(
            best, percent * rows[best - 1][key], "o", markersize=8, markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.4, label=f"best, epoch {best}", ls="none",
        )  # fmt: skip
    titles = {"loss": "Loss", "acc1": "Accuracy (%)", "map": "mAP (%)", "f1": "Micro F1 (%)"}
    axes.set(xlabel="epoch", title=titles[metric])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(left=min(0.5, 1 - 0.02 * len(rows)) if len(rows) > 1 else 0.5)
    axes.legend(loc="best")


def plot_confusion(axes: "Axes", counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Plot a confusion matrix (K, K) by label and prediction, shaded by the share of each label."""
    from matplotlib.patches import Rectangle

    size = len(classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    for label, predicted in zip(*np.nonzero(counts), strict=True):
        share = float(shares[label, predicted])
        correct = label == predicted
        axes.add_patch(
            Rectangle(
                (predicted - 0.48, label - 0.48), 0.96, 0.96, color=ACCENT if correct else WARN,
                lw=0, alpha=max(0.07, share**0.6),
            )
        )  # fmt: skip
        if size <= 16:
            axes.text(
                predicted, label, f"{counts[label, predicted]:,}",
                ha="center", va="center", fontsize=7,
                color=PAPER if share > 0.4 else INK,
            )  # fmt: skip
    names = [short(name) for name in classes]
    slanted = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(range(size), names, rotation=slanted, fontsize=8 if size <= 16 else 6.5)
    axes.set_yticks(range(size), names, fontsize=8 if size <= 16 else 6.5)
    axes.set(
        xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="predicted", ylabel="label",
        title="Confusion matrix", aspect="equal",
    )  # fmt: skip
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def plot_most_confused(
    axes: "Axes", pairs: Sequence[Sequence[int]], classes: Sequence[str]
) -> None:
    """Plot the most frequent confusions (label, prediction, count) as bars."""
    names = [f"{short(classes[k])} → {short(classes[predicted])}" for k, predicted, _ in pairs]
    bars = axes.barh(range(len(pairs)), [count for *_, count in pairs], 0.7, color=WARN)
    axes.bar_label(bars, padding=3, fontsize=7.5, color=MUTED)
    axes.set_yticks(range(len(pairs)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(title="Most confused, label → predicted", xlabel="images")
    axes.locator_params(axis="x", integer=True)
    axes.margins(x=0.12)


def plot_reliability(axes: "Axes", calibration: Calibration) -> None:
    """Plot a reliability diagram: accuracy in bins of confidence, the diagonal being perfect."""
    bins = len(calibration.counts)
    edges = (np.arange(bins) + 0.5) * 100 / bins
    full = calibration.counts > 0
    share = calibration.counts[full] / calibration.counts.sum()
    axes.plot([0, 100], [0, 100], color=MUTED, lw=0.9, ls=(0, (3, 3)), label="perfect")
    axes.bar(edges[full], 100 * share, 100 / bins * 0.86, color=LINE, label="share of images")
    confidence, accuracy = 100 * calibration.confidence[full], 100 * calibration.accuracy[full]
    axes.plot(confidence, accuracy, color=ACCENT, lw=1, alpha=0.5)
    # The area of a dot is its bin's share of the images: small bins are unreliable.
    axes.scatter(confidence, accuracy, 12 + 90 * share, color=ACCENT, lw=0, label="accuracy")
    axes.set(
        xlim=(0, 101), ylim=(0, 103), xlabel="confidence (%)",
        title=f"Reliability: ECE {100 * calibration.ece:.1f} %",
    )  # fmt: skip
    axes.legend(loc="upper left")


def plot_coverage(
    axes: "Axes", covered: NDArray[np.float64], accuracy: NDArray[np.float64]
) -> None:
    """Plot accuracy against coverage (N,): the share of the most confident images."""
    axes.plot(100 * covered, 100 * accuracy, color=ACCENT)
    axes.fill_between(100 * covered, 100 * accuracy, 0, color=ACCENT, alpha=0.08, lw=0)
    low = 100 * float(accuracy[covered >= 0.05].min(initial=1))
    span = max(100 - low, 0.5)
    axes.set(
        xlim=(0, 101),
        ylim=(max(0, low - 0.5 * span), 100 + 0.08 * span),
        xlabel="share of images answered, the most confident first (%)",
        title="Accuracy against coverage (%)",
    )


def short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
