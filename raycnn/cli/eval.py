"""The command `raycnn eval`: evaluate a run, class by class."""

import json
from typing import Annotated

import typer

from raycnn.cli.arguments import AsJson, DataRoot, RunName, Runs, WhichWeights
from raycnn.runtime.device import DEVICE_KINDS


def evaluate(
    run: RunName,
    split: Annotated[str, typer.Option("--split", help="test, val or train.")] = "test",
    weights: WhichWeights = "best",
    device: Annotated[
        str | None,
        typer.Option("--device", help=f"Predict anew on it: auto, {', '.join(DEVICE_KINDS)}."),
    ] = None,
    root: DataRoot = None,
    as_json: AsJson = False,
    runs: Runs = "runs",
) -> None:
    """Evaluate a run's weights on every image of a split once, with metrics of each class.

    Reads the run's stored predictions, and computes missing ones.
    """
    from raycnn.analysis.evaluate import evaluate_run
    from raycnn.runs.directory import Run

    result = evaluate_run(Run.find(run, runs, trained=True), split, weights, device, root)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    from raycnn.cli.training_view import tested

    print(tested(result[split], split))
    multi_label = "map" in result[split]
    if not multi_label:
        print(f"calibration error (ECE) {result[split]['ece']:.2%}")
    ap = f"{'AP':>9}" if multi_label else ""
    print(f"{'class':<20}{'images':>8}{ap}{'precision':>11}{'recall':>9}{'F1':>9}  95 % of recall")
    for row in result["per_class"]:
        low, high = row["recall_interval95"]
        if multi_label:
            ap = f"{row['ap']:>9.2%}" if row["ap"] is not None else " " * 9
        print(
            f"{row['class'][:19]:<20}{row['count']:>8,}{ap}{row['precision']:>11.2%}"
            f"{row['recall']:>9.2%}{row['f1']:>9.2%}  {low:.1%} to {high:.1%}"
        )
