"""The command `raycnn predict`: classify pictures with a run or an exported network."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Device, Runs, WhichWeights
from raycnn.errors import DataError, EnvironmentUnavailable

if TYPE_CHECKING:
    from raycnn.analysis.predict import Classifier


def predict(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run (folder, job/n, job), or an exported file.")
    ],
    paths: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Files and folders.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 3,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, help="Least probability of a multi-label class."),
    ] = 0.5,
    weights: WhichWeights = "best",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    runs: Runs = "runs",
) -> None:
    """Classify pictures, the most probable classes first. Needs only the run folder.

    A multi-label network names all classes of at least the threshold.
    """
    from raycnn.analysis import predict as networks

    classifier = _classifier(run, weights, device, runs)
    pictures = [(str(path), path) for path in networks.find_pictures(paths)]
    errors = []
    for path, answer in networks.predict(classifier, pictures):
        if isinstance(answer, DataError):
            errors.append(str(answer))
            continue
        ranked = networks.prediction_of(path, answer, classifier.classes).probabilities
        if classifier.multi_label:
            best = {name: share for name, share in ranked.items() if share >= threshold}
        else:
            best = dict(list(ranked.items())[:top])
        if as_json:
            print(json.dumps({"path": path, "classes": best}))
        else:
            text = "  ".join(f"{name} {share:.2%}" for name, share in best.items())
            print(f"{path}  {text or 'none'}")
    if errors:
        raise DataError("\n".join([f"pictures that could not be read: {len(errors)}", *errors]))


def _classifier(run: str, weights: str, device: str, runs: str) -> "Classifier":
    from raycnn.analysis import predict as networks
    from raycnn.analysis.exported_network import is_exported, open_exported
    from raycnn.runs.directory import Run
    from raycnn.runtime import device as devices

    if is_exported(path := Path(run)):
        if device not in ("auto", "cpu"):
            raise EnvironmentUnavailable(f"--device {device}: exported networks run on the cpu")
        return open_exported(path)
    return networks.load_network(
        Run.find(run, runs, trained=True).weights(weights), devices.find(device).select(0)
    )
