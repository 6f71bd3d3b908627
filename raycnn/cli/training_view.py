"""What a person sees of a training: one calm live view on a terminal, plain lines otherwise."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from raycnn.runs.directory import Run, plain_row
from raycnn.training.checkpoint import Row

HEADER = " epoch  train loss  train acc  val loss  val acc        lr  images/s     time"


def table_row(row: Row) -> str:
    """One epoch under the header."""
    val = f"{row['val/loss']:9.4f} {row['val/acc1']:8.2%}" if "val/loss" in row else " " * 18
    return (
        f"{row['epoch']:6.0f} {row['train/loss']:11.4f} {row['train/acc1']:10.2%} {val} "
        f"{row['lr']:9.2g} {row['images_per_s']:9,.0f} {row['time_s']:7.1f}s"
    )


class TerminalView:
    """A table that grows by a row each epoch, over one bar for the steps of the epoch under way."""

    def __init__(self, console: Console, epochs: int):
        self.console, self.epochs = console, epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None)
        self.headed = False

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

    def progress(self, epoch: int, step: int, steps: int) -> None:
        text = f"epoch {epoch}/{self.epochs}" if epoch else "decoding images"
        self.bar.update(self.task, description=text, completed=step, total=steps)

    def row(self, row: Row) -> None:
        if not self.headed:
            self.bar.console.print(HEADER, style="bold", highlight=False)
            self.headed = True
        self.bar.console.print(table_row(row), highlight=False)

    def note(self, text: str) -> None:
        self.bar.console.print(text, style="dim", highlight=False, markup=False)


class PlainView:
    """A line for each epoch, for logs."""

    def __init__(self, console: Console):
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        pass

    def progress(self, epoch: int, step: int, steps: int) -> None:
        pass

    def row(self, row: Row) -> None:
        self.note(plain_row(row))

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def view_for(console: Console, epochs: int) -> TerminalView | PlainView:
    return TerminalView(console, epochs) if console.is_terminal else PlainView(console)


def show_result(console: Console, run: Run) -> None:
    """The test number of a run that is done, and where the run lies."""
    result = run.result()
    assert result, "a launcher returns when the run is done"
    console.print(f"best epoch {result['best_epoch']} of {result['epochs']}", highlight=False)
    console.print(tested(result["test"]), style="bold", highlight=False)
    console.print(f"{run.folder}", soft_wrap=True, highlight=False)


def tested(test: dict[str, Any], split: str = "test") -> str:
    low, high = test["interval95"]
    count = test["count"]
    return (
        f"{split} {test['acc1']:.2%} (95 %: {low:.2%} to {high:.2%}), {count:,} of {count:,} images"
    )
