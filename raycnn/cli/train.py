"""`raycnn train` and `raycnn resume`."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn import spec, yaml_file
from raycnn.cli.arguments import Changes, Job, RunName, Runs, leads
from raycnn.errors import Interrupted

if TYPE_CHECKING:
    from raycnn.runs import Run, View


def train(
    job: Job,
    changes: Changes = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved spec, and train nothing.")
    ] = False,
) -> None:
    """Train a job: a new run folder, validation after each epoch, one test at the end."""
    resolved = spec.load(job, changes or [])
    from raycnn import launch
    from raycnn.check import check, check_settings
    from raycnn.runs import Run

    if show:
        check_settings(resolved)
        yaml_file.dump(resolved.tree(), sys.stdout)
        return
    check(resolved, elsewhere=launch.elsewhere(resolved.workers))
    _launch(resolved, lambda view: Run.create(resolved))


def resume(run: RunName, changes: Changes = None, runs: Runs = "runs") -> None:
    """Go on with a run from its last checkpoint; `train.epochs=N` trains a finished one longer."""
    from raycnn import launch
    from raycnn.check import check
    from raycnn.runs import Run, can_go_on

    found = Run.find(run, runs)
    resolved = found.job().change(changes or [])
    done = can_go_on(found, resolved)
    if found.result() and (done >= resolved.train.epochs or resolved == found.job()):
        longer = (
            f"train.epochs={done + 1}" if done == resolved.train.epochs else "train.patience=null"
        )
        print(f"{found.name} is done: {done} epochs; {longer} goes on")
        return
    elsewhere = launch.elsewhere(resolved.workers)
    check(resolved, elsewhere=elsewhere, checkpoints=found.checkpoints)
    with found.held():  # else another process trains it: said before anything starts
        pass

    def reopen(view: "View") -> Run:
        for change in found.reopen(resolved):
            view.note(change)
        return found

    _launch(resolved, reopen)


def _launch(job: spec.JobSpec, open_run: "Callable[[View], Run]") -> None:
    from rich.console import Console

    from raycnn import launch
    from raycnn.cli.view import show_result, view_for

    console = Console(quiet=not leads())

    def opened() -> "Run":
        run = open_run(view)
        view.note(f"run {run.folder}")
        return run

    with view_for(console, job.train.epochs) as view, job.located():
        try:
            run = launch.train(job, opened, view)
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped at once; `raycnn resume` goes on from the last checkpoint"
            ) from None
    show_result(console, run)
