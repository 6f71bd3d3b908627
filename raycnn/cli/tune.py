"""`raycnn tune`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Changes, Runs
from raycnn.config import search
from raycnn.config.search import load_search
from raycnn.errors import Interrupted, JobFailed, SpecError

if TYPE_CHECKING:
    from raycnn.search.folder import Search

File = Annotated[
    Path | None, typer.Argument(metavar="SEARCH", help="A job spec with `tune:`: a YAML file.")
]
FIRST = 12  # trials that --dry-run names


def tune(
    file: File = None,
    changes: Changes = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a search: its folder, or name/n."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, where and how long.")
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train the best of each architecture on all images, and test it."
        ),
    ] = False,
    runs: Runs = "runs",
) -> None:
    """Search the settings of a job, and of several architectures, with Ray Tune."""
    if file is None and resume is None:
        raise SpecError("name a file to search, or a search to go on with: --resume RUN")
    if file is not None and resume is not None:
        raise SpecError(f"--resume {resume} goes on as it is: leave out {file}")
    from raycnn.search.folder import Search
    from raycnn.search.preflight import check

    if resume is not None:
        found = Search.find(resume, runs)
        if dry_run:
            _left(found)
            return
        if found.waiting():
            _run(found.spec, lambda: found)
        _finish(found, retrain)
        return
    assert file
    asked = load_search(file, changes or [])
    check(asked)
    if dry_run:
        _plan(asked)
    else:
        _finish(_run(asked, lambda: Search.create(asked)), retrain)


def _left(search: "Search") -> None:
    waiting = [search.trial(*turn).id for turn in search.waiting()]
    print("\n".join([*waiting, f"{len(waiting)} of {len(search.wanted())} trials are left"]))


def _plan(asked: search.TuneSpec) -> None:
    from raycnn.cli.search_view import duration
    from raycnn.launch import dispatch, launcher
    from raycnn.runtime import device
    from raycnn.search.estimate import epoch_s
    from raycnn.search.samplers import make_sampler

    places = dispatch.places(asked)
    kinds = sorted({place.pool.device for place in places})
    total, known = 0.0, not launcher.elsewhere(asked.architectures[0].job.workers)
    pool = places[0].pool
    took = epoch_s(asked, device.find(pool.device).select(0, pool.cpus)) if known else {}
    for architecture in asked.architectures:
        draws, count = make_sampler(asked, architecture), architecture.trials(asked.tune.trials)
        print(f"{architecture.name}: {count} trials of {architecture.job.model.name}")
        for number in range(count):
            drawn = draws.changes(number)
            epochs = architecture.changed(asked.name, drawn, pool).train.epochs
            total += epochs * took.get(architecture.name, 0.0)
            if number < FIRST and asked.tune.searcher == "random":
                said = "  ".join(f"{key}={value}" for key, value in drawn.items())
                print(f"  {architecture.name}-{number:03d}  {said}".rstrip())
    print(f"{len(places)} at once, on {', '.join(kinds)}")
    if known:
        print(f"about {duration(total / len(places))} of training, if no trial is stopped")


def _run(asked: search.TuneSpec, open_search: "Callable[[], Search]") -> "Search":
    from rich.console import Console

    from raycnn.cli.search_view import search_view_for
    from raycnn.launch import dispatch

    console = Console(file=sys.stdout)  # this one, wherever Tune's own words go

    def opened() -> "Search":
        search = open_search()
        view.note(f"search {search.folder}")
        return search

    with search_view_for(console) as view:
        try:
            return dispatch.search(asked, opened, view)
        except KeyboardInterrupt:
            raise Interrupted("stopped at once; `raycnn tune --resume` goes on") from None


def _finish(search: "Search", retrain: bool) -> None:
    from rich.console import Console

    from raycnn.cli.search_view import show_board
    from raycnn.cli.train import train
    from raycnn.search.leaderboard import leaderboard, winners

    board = leaderboard(search)
    best = winners(board)
    show_board(Console(), search, board, best)
    if waiting := search.waiting():
        print(f"{len(waiting)} trials have not ended: `raycnn tune --resume {search.folder}`")
    elif not best:
        raise JobFailed(f"no trial came to its end: {board[0].reason}")
    for architecture in best if retrain else ():
        # On the held-out images too: they have chosen, and have nothing more to say.
        train(search.best_job(architecture), ["data.val=0"])
