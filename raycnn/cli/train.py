"""The commands `raycnn train` and `raycnn resume`: train a job, or continue a run."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import (
    Changes,
    JobOrPictures,
    RunName,
    Runs,
    is_printing,
    job_of_pictures,
)
from raycnn.config import yaml_file
from raycnn.config.load import load_job
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, Interrupted, RaycnnError

if TYPE_CHECKING:
    from rich.console import Console

    from raycnn.runs.directory import Run
    from raycnn.training.callbacks import Callback
    from raycnn.training.from_folder import FolderJob

    OpenRun = Callable[[JobSpec, Callback], Run]


def train(
    job: JobOrPictures,
    changes: Changes = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved spec, and train nothing.")
    ] = False,
) -> None:
    """Train a job: a new run folder, validation after each epoch, one test at the end."""
    generated = job_of_pictures(job, changes)
    spec = generated.job if generated else load_job(job.expanduser(), changes or [])
    if show:
        from raycnn.runs.preflight import resolve_job

        resolve_job(spec)
        yaml_file.dump(spec.tree(), sys.stdout)
        return
    _show_result(lambda console: train_new(spec, generated, console))


def resume(run: RunName, changes: Changes = None, runs: Runs = "runs") -> None:
    """Resume a run from its last checkpoint; `train.epochs=N` trains a finished one longer."""
    from raycnn.runs.compatibility import completed_epochs
    from raycnn.runs.directory import Run

    earlier = Run.find(run, runs)
    spec = earlier.job().change(changes or [])
    if (done := completed_epochs(earlier, spec)) is not None:
        longer = f"train.epochs={done + 1}" if done == spec.train.epochs else "train.patience=null"
        print(f"{earlier.name} is done: {done} epochs; {longer} continues it")
        return
    _show_result(lambda console: train_further(earlier, spec, console))


def _show_result(train: "Callable[[Console], Run]") -> None:
    from rich.console import Console

    from raycnn.cli.training_view import show_result

    console = Console(quiet=not is_printing())
    show_result(console, train(console))


def train_new(job: JobSpec, generated: "FolderJob | None", console: "Console") -> "Run":
    """Check a job, train it in a new run folder, and show progress on a console."""

    def create(checked: JobSpec, view: "Callback") -> "Run":
        from raycnn.runs.directory import Run
        from raycnn.training.callbacks import SpecWritten

        run = Run.create(checked)
        if generated:
            path = str(generated.write(run.folder))
            view.on_event(SpecWritten(found=generated.summary, path=path))
        return run

    return _launch(job, None, create, console)


def train_further(earlier: "Run", job: JobSpec, console: "Console") -> "Run":
    """Check a job, resume its run with it, and show progress on a console."""

    def reopen(checked: JobSpec, view: "Callback") -> "Run":
        for change in earlier.reopen(checked):
            view.on_event(change)
        return earlier

    if is_printing():  # under torchrun the others would only wait for this one
        with earlier.lock():  # fail early if another process trains it
            pass
    before, trainings = earlier.job(), _count_trainings(earlier)
    try:
        return _launch(job, earlier, reopen, console)
    except RaycnnError:
        if is_printing() and earlier.job() != before:
            _cancel_unless_trained(earlier, before, trainings)
        raise


def _cancel_unless_trained(earlier: "Run", before: JobSpec, trainings: int) -> None:
    """Put back the job and the result of a run whose training did not start again."""
    from raycnn.runs.directory import Run

    with suppress(EnvironmentUnavailable):  # the reason why it did not is reported instead
        run = Run.open(earlier.location)  # with what workers on other machines have written
        if _count_trainings(run) == trainings:
            run.cancel_reopening(before)


def _count_trainings(run: "Run") -> int:
    from raycnn.training.callbacks import TrainingStarted

    return sum(isinstance(event, TrainingStarted) for event in run.events())


def _launch(job: JobSpec, earlier: "Run | None", open_run: "OpenRun", console: "Console") -> "Run":
    from raycnn.cli.training_view import view_for
    from raycnn.launch import dispatch, launcher
    from raycnn.runs.preflight import check_job
    from raycnn.training.callbacks import RunOpened

    remote = launcher.is_remote(job.workers)
    checked = check_job(job, remote=remote, run=earlier).job

    def opened() -> "Run":
        run = open_run(checked, view)
        view.on_event(RunOpened(location=str(run.location)))
        return run

    with view_for(console, checked.train.epochs) as view, checked.located():
        try:
            return dispatch.train(checked, opened, view)
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped at once; `raycnn resume` continues from the last checkpoint"
            ) from None
