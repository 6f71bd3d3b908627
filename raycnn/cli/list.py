"""The command `raycnn list`: list names for specs, recipes, runs, searches, or a cluster's jobs."""

import json
import sys
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycnn.cli.arguments import Address, AsJson, Runs
from raycnn.errors import EnvironmentUnavailable, SpecError, unknown
from raycnn.filesystem import is_uri

if TYPE_CHECKING:
    from raycnn.config.registry import Registry
    from raycnn.runs.listing import RunSummary
    from raycnn.search.listing import SearchSummary

HEADER = ["run", "state", "epochs", "val", "test", "model", "seconds", "start", "changed"]
SEARCH_HEADER = ["search", "state", "trials", "best"]
SORTS = ["name", "state", "val", "test", "seconds", "start"]
BEST_FIRST = ("val", "test")
TABLES = ["datasets", "models", "optimizers", "schedules", "transforms"]


def show(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="A table (models, ...), recipes, runs or searches."),
    ] = "",
    runs: Runs = "runs",
    jobs: Annotated[bool, typer.Option("--jobs", help="The jobs submitted to a cluster.")] = False,
    address: Address = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort", help="Runs by name, state, val or test (best first), seconds or start."
        ),
    ] = "name",
    as_json: AsJson = False,
) -> None:
    """List all names that a spec can use, with options; recipes; runs; searches; or a cluster's
    jobs.
    """
    if jobs:
        _show_jobs(address, as_json)
        return
    if sort not in SORTS:
        raise SpecError(unknown("order", sort, SORTS))
    if what in ("runs", "searches"):
        root = runs if is_uri(runs) else str(Path(runs).expanduser())
        _show_runs(root, sort, as_json) if what == "runs" else _show_searches(root, as_json)
        return
    if what == "recipes":
        _show_recipes(as_json)
        return
    if what and what not in TABLES:
        raise SpecError(unknown("table", what, [*TABLES, "recipes", "runs", "searches"]))
    tables = {name: table for name, table in _tables().items() if what in ("", name)}
    if as_json:
        print(json.dumps({name: _entries(table) for name, table in tables.items()}, indent=1))
    else:
        for name, table in tables.items():
            print(f"{name}:")
            for entry in table.names():
                print(f"  {entry:<20}{_options(table, entry)}".rstrip())


def _show_recipes(as_json: bool) -> None:
    from raycnn.config.recipes import descriptions

    found = descriptions()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print_table([[name, text] for name, text in found.items()])


def _show_jobs(address: str | None, as_json: bool) -> None:
    from raycnn.cli.remote import connect, job_facts, show_jobs

    cluster = connect(address)
    if as_json:
        print(json.dumps([job_facts(job) for job in cluster.jobs()], indent=1))
    else:
        show_jobs(cluster)


def _entries(table: "Registry[Any]") -> dict[str, Any]:
    """Return the JSON schema of the options of each name; null if a package cannot be used."""
    schemas: dict[str, Any] = {}
    for name in table.names():
        try:
            schemas[name] = table.described(name).model_json_schema().get("properties", {})
        except EnvironmentUnavailable:
            schemas[name] = None
    return schemas


def _tables() -> "dict[str, Registry[Any]]":
    from raycnn.config import components as c

    tables: list[Registry[Any]] = [c.DATASETS, c.MODELS, c.OPTIMIZERS, c.SCHEDULES, c.TRANSFORMS]
    return dict(zip(TABLES, tables, strict=True))


def _options(table: "Registry[Any]", entry: str) -> str:
    try:
        fields = table.described(entry).model_fields.items()
    except EnvironmentUnavailable as error:  # the package cannot be imported: list the rest
        return str(error)
    return ", ".join(n if f.is_required() else f"{n}={f.default}" for n, f in fields)


def _show_runs(root: str, sort: str, as_json: bool) -> None:
    from raycnn.runs.directory import Run
    from raycnn.runs.listing import summarize_runs

    runs = summarize_runs(Run.all(root))
    if sort != "name":
        known = [run for run in runs if getattr(run, sort) is not None]
        known.sort(key=attrgetter(sort), reverse=sort in BEST_FIRST)
        runs = [*known, *(run for run in runs if getattr(run, sort) is None)]
    if as_json:
        print(json.dumps([asdict(run) for run in runs], indent=1))
        return
    if runs:
        _print_table([HEADER, *map(_row, runs)])
    if is_uri(root) or any(Path(root).glob("*/*/search.yaml")):
        _show_searches(root)


def _row(run: "RunSummary") -> list[str]:
    return [
        run.name,
        run.state,
        str(run.epochs),
        "" if run.val is None else f"{run.val:.2%}",
        "" if run.test is None else f"{run.test:.2%}",
        run.model,
        f"{run.seconds:,.0f}",
        run.start,
        " ".join(f"{key}={value}" for key, value in run.changed.items()),
    ]


def _print_table(rows: list[list[str]]) -> None:
    """Print aligned columns; on a terminal, rows are cut to its width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    limit = get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip()[:limit])


def _show_searches(root: str, as_json: bool = False) -> None:
    from raycnn.search.listing import summarize_searches

    searches = list(summarize_searches(root))
    if as_json:
        print(json.dumps([asdict(search) for search in searches], indent=1))
        return
    if searches:
        _print_table([SEARCH_HEADER, *map(_search_row, searches)])


def _search_row(search: "SearchSummary") -> list[str]:
    best = f"{search.metric} {search.best:.4g}, {search.winner}" if search.winner else ""
    trials = "" if search.error else f"{search.ended} of {search.trials}"
    return [search.name, search.state, trials, search.error or best]
