"""The plot of a learning-rate range test."""

from pathlib import Path

from raycnn.analysis.lr_finder import RangeTest

SIZE = (8.0, 5.0)  # inches
DPI = 120


def plot_range_test(test: RangeTest, own_lr: float, title: str, path: Path) -> None:
    """Write the losses, the suggestion and the job's own rate to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(test.rates, test.losses, color="C0", alpha=0.3, linewidth=1, label="each step")
    axes.plot(test.rates, test.smoothed, color="C0", linewidth=2, label="smoothed")
    suggestion = test.suggestion
    axes.axvline(suggestion, color="C1", label=f"suggested: {suggestion:g}")
    if test.rates[0] <= own_lr <= test.rates[-1]:
        axes.axvline(own_lr, color="gray", linestyle="--", label=f"the job's: {own_lr:g}")
    axes.set(xscale="log", xlabel="optimizer.lr", ylabel="train/loss", title=title)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DPI)
