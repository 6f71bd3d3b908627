"""The command `raycnn compare`: show runs side by side, on the terminal or as a page."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycnn.cli.arguments import AsJson, Runs
from raycnn.errors import EnvironmentUnavailable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from raycnn.analysis.compare import Comparison

MAX_CLASSES = 10  # shown on the terminal
MAX_WIDTH = 120


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more: folders, or job/n.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with curves, too.")
    ] = None,
    as_json: AsJson = False,
    root: Runs = "runs",
) -> None:
    """Compare runs: their specs, test predictions image by image, seeds and classes."""
    from raycnn.analysis.compare import compare as compare_runs
    from raycnn.runs.directory import Run

    comparison = compare_runs([Run.find(name, root) for name in runs])
    if html:
        from raycnn.report import compare as compare_page

        try:
            compare_page.write_comparison(html, comparison)
        except OSError as error:
            raise EnvironmentUnavailable(f"cannot write {html}: {error}") from None
    if as_json:
        print(json.dumps(_plain(comparison), indent=1))
        return
    from rich.console import Console

    console = Console(width=min(MAX_WIDTH, shutil.get_terminal_size().columns), highlight=False)
    _show(console, comparison)
    if html:
        console.print(f"\nopen {html}", soft_wrap=True)


def _plain(comparison: "Comparison") -> dict[str, Any]:
    shown = asdict(comparison)
    for run in shown["runs"]:
        del run["predictions"]
    return shown


def _show(console: "Console", comparison: "Comparison") -> None:
    names = [run.name for run in comparison.runs]
    settings = _table("what is different", *names)
    for key, values in comparison.differing.items():
        settings.add_row(key, *map(_escape, values))
    console.print(settings if comparison.differing else "the specs are the same")
    _show_results(console, comparison)
    _show_seeds_and_pairs(console, comparison)
    _show_classes(console, comparison)


def _show_results(console: "Console", comparison: "Comparison") -> None:
    tests = _table("run", "epochs", "best val", "test", "95 %", "state")
    for run in comparison.runs:
        tested = run.result["test"] if run.result else {}
        tests.add_row(
            run.name,
            str(len(run.rows)),
            "" if run.best_val is None else f"{run.best_val:.2%}",
            "" if run.test is None else f"{run.test:.2%}",
            "{:.2%} to {:.2%}".format(*tested["interval95"]) if "interval95" in tested else "",
            run.state,
        )
    console.print(tests)


def _show_seeds_and_pairs(console: "Console", comparison: "Comparison") -> None:
    for group in comparison.groups:
        if group.deviation is not None:
            seeds = ", ".join(map(str, group.seeds))
            console.print(
                f"seeds {seeds}: test {group.mean:.2%} ± {group.deviation:.2%} (mean ± deviation)",
                soft_wrap=True,
            )
    for pair in comparison.paired:
        two = f"{pair.one} and {pair.other}"
        if pair.p_value is None:
            console.print(
                f"{two}: tests not compared, {pair.refused}", soft_wrap=True, markup=False
            )
            continue
        how = "exact" if pair.exact else "chi-squared"
        console.print(
            f"{two}: {pair.difference:+.2%}; only one right: {pair.only_one:,} and "
            f"{pair.only_other:,} of {pair.count:,}; McNemar p = {pair.p_value:.2g} ({how})",
            soft_wrap=True,
            markup=False,
        )


def _show_classes(console: "Console", comparison: "Comparison") -> None:
    if not comparison.classes:
        return
    classes = _table("recall of class", *(run.name for run in comparison.runs))
    for name, recalls in list(comparison.classes.items())[:MAX_CLASSES]:
        classes.add_row(name, *(f"{recall:.1%}" for recall in recalls))
    console.print(classes)
    if len(comparison.classes) > MAX_CLASSES:
        console.print(f"the {MAX_CLASSES} classes that differ most, of {len(comparison.classes):,}")


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _escape(value: Any) -> str:
    from rich.markup import escape

    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
