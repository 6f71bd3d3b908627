"""The command `raycnn tune`: search the settings of a job."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Changes, Runs
from raycnn.config.search import TuneSpec, load_search
from raycnn.errors import Interrupted, JobFailed, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from raycnn.search.folder import Search

SearchFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="SEARCH", help="A job with `tune:`: a YAML file, or a recipe: NAME.tune."
    ),
]
DRY_RUN_TRIALS = 12  # trials per architecture that --dry-run lists


def tune(
    file: SearchFile = None,
    changes: Changes = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue a search: its folder, or name/n."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, where and how long.")
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="Then train the best of each architecture on all images, none held out, and "
            "test its last epoch.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the leaderboard as JSON; all else goes to stderr."),
    ] = False,
    runs: Runs = "runs",
) -> None:
    """Search the settings of a job, and of several architectures."""
    if as_json and (retrain or dry_run):
        raise SpecError("--json prints a leaderboard: leave out --retrain and --dry-run")
    if file is None and resume is None:
        raise SpecError("give a search file, or a search to continue: --resume RUN")
    if file is not None and resume is not None:
        raise SpecError(f"--resume {resume} continues a search as it is: leave out {file}")
    from raycnn.search.folder import Search
    from raycnn.search.preflight import check_search

    if resume is not None:
        _continue(Search.find(resume, runs), dry_run, retrain, as_json)
        return
    assert file
    spec = check_search(load_search(file, changes or []))
    if dry_run:
        _print_plan(spec)
    else:
        _finish(_run(spec, lambda: Search.create(spec), as_json), retrain, as_json)


def _continue(search: "Search", dry_run: bool, retrain: bool, as_json: bool) -> None:
    if dry_run:
        _print_unfinished(search)
        return
    from raycnn.launch import dispatch

    if search.unfinished():
        _run(search.spec, lambda: search, as_json)
    else:
        dispatch.complete(search, lambda text: print(text, file=sys.stderr))
    _finish(search, retrain, as_json)


def _print_unfinished(search: "Search") -> None:
    ids = [key.id for key in search.unfinished()]
    print("\n".join([*ids, f"{len(ids)} of {len(search.spec.trials())} trials are left"]))


def _print_plan(spec: TuneSpec) -> None:
    from raycnn.cli.search_view import changes_text, rounded_duration
    from raycnn.launch import dispatch, launcher
    from raycnn.runtime import device
    from raycnn.search.estimate import epoch_s
    from raycnn.search.samplers import make_sampler

    slots = dispatch.available_slots(spec)
    if spec.architectures[0].job.workers.launcher == "local":
        slots = slots[:1]  # the trials run one after another
    kinds = sorted({slot.pool.device for slot in slots})
    seconds, is_local = 0.0, not launcher.is_remote(spec.architectures[0].job.workers)
    pool = slots[0].pool
    epochs_s = epoch_s(spec, device.find(pool.device).select(0, pool.cpus)) if is_local else {}
    for architecture in spec.architectures:
        sampler, count = make_sampler(spec, architecture), architecture.trials(spec.tune.trials)
        folds = f", each of {spec.tune.folds} folds" if spec.tune.folds else ""
        print(f"{architecture.name}: {count} trials of {architecture.job.model.name}{folds}")
        for number in range(count):
            changes = sampler.changes(number)
            epochs = architecture.job_of(spec.name, changes, pool).train.epochs
            seconds += epochs * epochs_s.get(architecture.name, 0.0) * len(spec.folds)
            if number < DRY_RUN_TRIALS and spec.tune.searcher == "random":
                print(f"  {architecture.name}-{number:03d}  {changes_text(changes)}".rstrip())
    print(f"{len(slots)} at once, on {', '.join(kinds)}")
    if is_local:
        print(f"about {rounded_duration(seconds / len(slots))} of training, if no trial is stopped")


def _run(spec: TuneSpec, open_search: "Callable[[], Search]", to_stderr: bool) -> "Search":
    from rich.console import Console

    from raycnn.cli.search_view import search_view_for
    from raycnn.launch import dispatch

    def opened() -> "Search":
        search = open_search()
        view.log(f"search {search.location}")
        for architecture in spec.architectures:
            count = architecture.trials(spec.tune.trials)
            if architecture.sampled and count < (spec.tune.trials or 0):
                view.log(f"{architecture.name}: {count} trials: its space has no more values")
        return search

    with search_view_for(Console(file=sys.stderr if to_stderr else sys.stdout)) as view:
        try:
            return dispatch.search(spec, opened, view)
        except KeyboardInterrupt:
            raise Interrupted("stopped at once; `raycnn tune --resume` continues") from None


def _finish(search: "Search", retrain: bool, as_json: bool) -> None:
    from rich.console import Console

    from raycnn.cli.search_view import show_leaderboard, show_next
    from raycnn.cli.train import train
    from raycnn.search.leaderboard import leaderboard, to_tree, winners

    board, console = leaderboard(search), Console(stderr=as_json)
    best = winners(board)
    show_leaderboard(console, search, board)
    if as_json:
        print(json.dumps({"search": str(search.location)} | to_tree(search, board), indent=1))
    if not search.unfinished() and not best:
        raise JobFailed(f"no trial completed: {board[0].reason}")
    if not retrain:
        show_next(console, search, board)
    for architecture in best if retrain else ():
        console.print(
            f"training the best {architecture} on all images: none are held out, so there is no "
            "validation, and the last epoch is tested",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
        train(search.best_job_path(architecture), _on_all_images(search))


def _on_all_images(search: "Search") -> list[str]:
    """Return the changes with which the best job trains on all images, where the search ran."""
    changes = ["data.val=0", "data.fold=null", "train.patience=null"]
    address = search.spec.architectures[0].job.workers.address
    return [*changes, f"workers.address={json.dumps(address)}"] if address else changes
