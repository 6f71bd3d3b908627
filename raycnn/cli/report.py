"""The command `raycnn report`: write the report of a run or a search."""

from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import DataRoot, Device, Runs
from raycnn.errors import EnvironmentUnavailable, SpecError

if TYPE_CHECKING:
    from raycnn.runs.directory import Run
    from raycnn.search.folder import Search


def report(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN|SEARCH", help="A folder, or name/n, or name for its latest."),
    ],
    device: Device = "cpu",
    root: DataRoot = None,
    runs: Runs = "runs",
) -> None:
    """Write report.html and its pictures into the folder of a run or a search.

    A job or search that ends has written it already. Images are shown if the data is available.
    """
    from raycnn.report import run as run_report
    from raycnn.report import search as search_report
    from raycnn.search.folder import Search
    from raycnn.search.leaderboard import leaderboard

    target = _find(name, runs)
    try:
        if isinstance(target, Search):
            path = search_report.write_search_report(target, leaderboard(target))
        else:
            path = run_report.write_from_folder(target, device, root)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write the report: {error}") from None
    print(path)
    target.flush()


def _find(name: str, root: str) -> "Run | Search":
    """Return the run or search of this name. Raises SpecError, listing the existing names."""
    from raycnn.runs.directory import Run
    from raycnn.search.folder import Search

    for kind in (Search, Run):
        try:
            return kind.find(name, root)
        except SpecError as error:
            not_found = error
    raise not_found
