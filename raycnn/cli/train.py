"""The commands `raycnn train` and `raycnn resume`: train a job, or continue a run."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import (
    Changes,
    JobOrPictures,
    RunName,
    Runs,
    is_rank_zero,
    job_of_pictures,
)
from raycnn.config import schema, yaml_file
from raycnn.config.load import load_job
from raycnn.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from raycnn.runs.directory import Run
    from raycnn.training.callbacks import Callback


def train(
    job: JobOrPictures,
    changes: Changes = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved spec, and train nothing.")
    ] = False,
) -> None:
    """Train a job: a new run folder, validation after each epoch, one test at the end."""
    generated = job_of_pictures(job, changes)
    resolved = generated.job if generated else load_job(job.expanduser(), changes or [])
    from raycnn.launch import launcher
    from raycnn.runs.directory import Run
    from raycnn.training.callbacks import SpecWritten
    from raycnn.training.preflight import check_job, resolve_job

    if show:
        resolve_job(resolved)
        yaml_file.dump(resolved.tree(), sys.stdout)
        return
    resolved = check_job(resolved, remote=launcher.is_remote(resolved.workers)).job

    def create(view: "Callback") -> Run:
        run = Run.create(resolved)
        if generated:
            view.on_event(
                SpecWritten(found=generated.summary, path=str(generated.write(run.folder)))
            )
        return run

    _launch(resolved, create)


def resume(run: RunName, changes: Changes = None, runs: Runs = "runs") -> None:
    """Resume a run from its last checkpoint; `train.epochs=N` trains a finished one longer."""
    from raycnn.launch import launcher
    from raycnn.runs.compatibility import validate_resume
    from raycnn.runs.directory import Run
    from raycnn.training.preflight import check_job

    earlier = Run.find(run, runs)
    resolved = earlier.job().change(changes or [])
    done = validate_resume(earlier, resolved)
    if earlier.result() and (done >= resolved.train.epochs or resolved == earlier.job()):
        longer = (
            f"train.epochs={done + 1}" if done == resolved.train.epochs else "train.patience=null"
        )
        print(f"{earlier.name} is done: {done} epochs; {longer} continues it")
        return
    remote = launcher.is_remote(resolved.workers)
    resolved = check_job(resolved, remote=remote, checkpoints=earlier.checkpoints).job
    with earlier.lock():  # fail early if another process trains it
        pass

    def reopen(view: "Callback") -> Run:
        for change in earlier.reopen(resolved):
            view.on_event(change)
        return earlier

    _launch(resolved, reopen)


def _launch(job: schema.JobSpec, open_run: "Callable[[Callback], Run]") -> None:
    from rich.console import Console

    from raycnn.cli.training_view import show_result

    console = Console(quiet=not is_rank_zero())
    show_result(console, launch(job, open_run, console))


def launch(job: schema.JobSpec, open_run: "Callable[[Callback], Run]", console: "Console") -> "Run":
    """Train a checked job in the run that `open_run` opens, and show progress on a console."""
    from raycnn.cli.training_view import view_for
    from raycnn.launch import dispatch
    from raycnn.training.callbacks import RunOpened

    def opened() -> "Run":
        run = open_run(view)
        view.on_event(RunOpened(folder=str(run.folder)))
        return run

    with view_for(console, job.train.epochs) as view, job.located():
        try:
            return dispatch.train(job, opened, view)
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped at once; `raycnn resume` continues from the last checkpoint"
            ) from None
