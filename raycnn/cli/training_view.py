"""The view of a training: a live table and bar on a terminal, plain lines otherwise."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console
from typing_extensions import Self

from raycnn.runs.directory import Run
from raycnn.runs.result import times_per_image
from raycnn.training.callbacks import (
    CheckpointSaved,
    Decoding,
    EpochEnded,
    Evaluated,
    Event,
    Failed,
    Progress,
    ReportWritten,
    StoppedEarly,
    StoppedOnRequest,
)
from raycnn.training.main_metric import main_metric, train_metric, val_metric

SPEED_PERIOD_S = 600  # a longer time than most validations take, which are part of an epoch

# Shown by the error that ends the command or by the result, or too frequent.
HIDDEN = CheckpointSaved | Failed | StoppedOnRequest | Evaluated | ReportWritten

HEADER = " epoch  train loss  train acc  val loss  val acc        lr  images/s     time"
MULTI_LABEL_HEADER = HEADER.replace("train acc", " train F1").replace("val acc", "val mAP")


def table_row(row: Mapping[str, float]) -> str:
    """Return the row of one epoch, aligned with its header."""
    metric = val_metric(row)
    val = f"{row['val/loss']:9.4f} {row[metric]:8.2%}" if metric else " " * 18
    return (
        f"{row['epoch']:6.0f} {row['train/loss']:11.4f} {row[train_metric(row)]:10.2%} {val} "
        f"{row['lr']:9.2g} {row['images_per_s']:9,.0f} {row['time_s']:7.1f}s"
    )


def is_shown(event: Event) -> bool:
    """Return whether an event has a line of its own."""
    return not event.transient and not isinstance(event, HIDDEN)


class TerminalView:
    """Shows a table with a row per epoch, above one progress bar for the whole run."""

    def __init__(self, console: Console, epochs: int):
        self.console, self.epochs = console, epochs
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SPEED_PERIOD_S,
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None)
        self.headed = self.moving = False

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def on_event(self, event: Event) -> None:
        match event:
            case Progress():
                self._progress(event)
            case Decoding():
                self.bar.update(
                    self.task,
                    description="decoding images",
                    completed=event.done,
                    total=event.total,
                )
            case EpochEnded():
                if not self.headed:
                    multi_label = train_metric(event.metrics) == "train/f1"
                    header = MULTI_LABEL_HEADER if multi_label else HEADER
                    self.bar.console.print(header, style="bold", highlight=False)
                    self.headed = True
                self.bar.console.print(table_row(event.metrics), highlight=False)
                if event.metrics["epoch"] == self.epochs:
                    self._last_part("testing")
            case StoppedEarly():
                self.bar.console.print(event.message, style="dim", highlight=False)
                self._last_part("testing")
            case Evaluated():
                self._last_part("writing the report")
            case _ if is_shown(event):
                self.bar.console.print(event.message, style="dim", highlight=False, markup=False)

    def _last_part(self, text: str) -> None:
        """Show work of unknown duration: a task that had a total keeps it."""
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task(text, total=None)

    def _progress(self, event: Progress) -> None:
        """Update the bar; the remaining time is that of the whole run, at this process's speed."""
        loss = "" if event.loss is None else f"  loss {event.loss:.4f}"
        text = f"epoch {event.epoch}/{self.epochs}{loss}"
        done, total = (event.epoch - 1) * event.steps + event.step, self.epochs * event.steps
        if not self.moving:  # else a resumed run's first epochs would count as instant
            self.bar.reset(self.task, total=total, completed=done, description=text)
            self.moving = True
        self.bar.update(self.task, description=text, completed=done, total=total)


class PlainView:
    """Prints a line per event, for logs."""

    def __init__(self, console: Console):
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        pass

    def on_event(self, event: Event) -> None:
        if is_shown(event):
            self.console.print(event.message, soft_wrap=True, highlight=False, markup=False)


def view_for(console: Console, epochs: int) -> TerminalView | PlainView:
    return TerminalView(console, epochs) if console.is_terminal else PlainView(console)


def show_result(console: Console, run: Run) -> None:
    """Print the test result of a finished run, its location, and the next commands."""
    result = run.result()
    assert result, "a launcher returns when the run is done"
    console.print(_chosen(result), soft_wrap=True, highlight=False)
    console.print(tested(result["test"]), style="bold", soft_wrap=True, highlight=False)
    for title, (work, durations) in zip(
        ("per image:", ""), times_per_image(result).items(), strict=False
    ):
        console.print(f"{title:<10} {work} {durations}", soft_wrap=True, highlight=False)
    console.print(f"{run.location}", soft_wrap=True, highlight=False, markup=False)
    report = run.folder / "report.html"
    if report.is_file():
        console.print(f"report {report}", soft_wrap=True, highlight=False, markup=False)
    here = run.folder.parent.parent == Path("runs").absolute()
    name = run.name if here else quote(str(run.location))
    for word, verb in zip(("next:", "", ""), ("eval", "predict", "export"), strict=True):
        rest = " PICTURE..." if verb == "predict" else ""
        text = f"{word:<5} raycnn {verb} {name}{rest}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _chosen(result: dict[str, Any]) -> str:
    """Return which epoch was chosen, and by what: old runs have no `val`."""
    text = f"best epoch {result['best_epoch']} of {result['epochs']}"
    return f"{text}: {tested(result['val'], 'validation')}" if result.get("val") else text


def tested(test: dict[str, Any], split: str = "test") -> str:
    count, details = test["count"], []
    if "interval95" in test:
        details.append("95 %: {:.2%} to {:.2%}".format(*test["interval95"]))
    metric = main_metric(test)
    if metric == "map" and "f1" in test:
        details.append(f"F1 {test['f1']:.2%}, macro {test['f1_macro']:.2%}")
    name = " mAP" if metric == "map" else ""
    described = f" ({'; '.join(details)})" if details else ""
    return f"{split}{name} {test[metric]:.2%}{described}, {count:,} of {count:,} images"
