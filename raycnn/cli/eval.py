"""`raycnn eval`."""

import json
from typing import Annotated

import typer

from raycnn.cli.arguments import Device, RunName, Runs, Weights
from raycnn.errors import SpecError, unknown

SPLITS = ["test", "val", "train"]


def evaluate(
    run: RunName,
    split: Annotated[str, typer.Option("--split", help="test, val or train.")] = "test",
    weights: Weights = "best",
    device: Device = "auto",
    root: Annotated[
        str | None, typer.Option("--root", help="Folder that holds the data, if it has moved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,
    runs: Runs = "runs",
) -> None:
    """Evaluate a run's weights on every image of a split, once; class by class."""
    if split not in SPLITS:
        raise SpecError(unknown("split", split, SPLITS))
    from raycnn.analysis.predict import evaluate_run
    from raycnn.runs.directory import Run

    result = evaluate_run(Run.find(run, runs), split, weights, device, root)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    from raycnn.cli.training_view import tested

    print(tested(result["test"], split))
    print(f"{'class':<20}{'images':>8}{'precision':>11}{'recall':>9}{'F1':>9}")
    for row in result["per_class"]:
        print(
            f"{row['class']:<20}{row['count']:>8,}{row['precision']:>11.2%}"
            f"{row['recall']:>9.2%}{row['f1']:>9.2%}"
        )
