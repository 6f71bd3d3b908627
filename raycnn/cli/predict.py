"""`raycnn predict`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from raycnn.cli.arguments import Device, RunName, Runs, Weights
from raycnn.errors import DataError


def predict(
    run: RunName,
    paths: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Files and folders.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 3,
    weights: Weights = "best",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    runs: Runs = "runs",
) -> None:
    """Name the classes of pictures, most probable first. Needs the run folder alone."""
    from raycnn.analysis import predict as predicting
    from raycnn.runs.directory import Run
    from raycnn.runtime import device as devices

    chosen = devices.find(device).select(0)
    network = predicting.load(Run.find(run, runs).weights(weights), chosen)
    faults = []
    for path, answer in predicting.predict(network, predicting.pictures(paths)):
        if isinstance(answer, DataError):
            faults.append(str(answer))
            continue
        best = answer.topk(min(top, len(network.classes)))
        names = [network.classes[k] for k in best.indices.tolist()]
        said = dict(zip(names, best.values.tolist(), strict=True))
        if as_json:
            print(json.dumps({"path": str(path), "classes": said}))
        else:
            print(f"{path}  " + "  ".join(f"{name} {share:.2%}" for name, share in said.items()))
    if faults:
        raise DataError("\n".join([f"{len(faults)} pictures could not be read:", *faults]))
