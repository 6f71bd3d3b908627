"""`raycnn list`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycnn.cli.arguments import Address, Runs
from raycnn.errors import EnvironmentUnavailable, SpecError, first_line, unknown

if TYPE_CHECKING:
    from raycnn.config.registry import Registry

TABLES = ["datasets", "models", "optimizers", "schedules", "transforms"]


def show(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="models, datasets, ..., or runs; else all names."),
    ] = "",
    runs: Runs = "runs",
    jobs: Annotated[bool, typer.Option("--jobs", help="The jobs submitted to a cluster.")] = False,
    address: Address = None,
) -> None:
    """List what a spec can name, with options; the runs and searches; or a cluster's jobs."""
    if jobs:
        from raycnn.cli.remote import reach, show_jobs

        show_jobs(reach(address))
        return
    if what == "runs":
        _show_runs(runs)
        return
    if what and what not in TABLES:
        raise SpecError(unknown("table", what, [*TABLES, "runs"]))
    for name, table in _tables().items():
        if what in ("", name):
            print(f"{name}:")
            for entry in table.names():
                print(f"  {entry:<20}{_options(table, entry)}".rstrip())


def _tables() -> "dict[str, Registry[Any]]":
    from raycnn.config import components as c

    tables: list[Registry[Any]] = [c.DATASETS, c.MODELS, c.OPTIMIZERS, c.SCHEDULES, c.TRANSFORMS]
    return dict(zip(TABLES, tables, strict=True))


def _options(table: "Registry[Any]", entry: str) -> str:
    try:
        fields = table.described(entry).model_fields.items()
    except EnvironmentUnavailable as error:  # of another package: the others are listed
        return str(error)
    return ", ".join(n if f.is_required() else f"{n}={f.default}" for n, f in fields)


def _show_runs(root: str) -> None:
    from raycnn.runs.directory import Run
    from raycnn.search.folder import Search
    from raycnn.search.leaderboard import leaderboard, winners

    for run in Run.all(root):
        rows, result = run.rows(), run.result()
        best = max((float(row["val/acc1"]) for row in rows if row["val/acc1"]), default=None)
        val = f"val {best:.2%}" if best is not None else ""
        test = f"test {result['test']['acc1']:.2%}" if result else ""
        print(f"{run.name:<28}{run.state():<9}{len(rows):>4} epochs  {val:<12}{test}".rstrip())
    for search in Search.all(root):
        try:
            board = leaderboard(search)
        except SpecError as error:  # torn, or another version's: the others are shown all the same
            print(f"{search.name:<28}damaged  {first_line(error)}")
            continue
        ended = sum(entry.state != "unfinished" for entry in board)
        trials = f"{ended:>4} of {len(search.spec.trials())} trials"
        won = next(iter(winners(board).values()), None)
        said = f"{search.spec.tune.metric} {won.metric:.4g}, {won.trial}" if won else ""
        print(f"{search.name:<28}{search.state():<9}{trials}  {said}".rstrip())
