"""The command `raycnn export`: write a network for other programs."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from raycnn.cli.arguments import DataRoot, RunName, Runs, WhichWeights


def export(
    run: RunName,
    kind: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, safetensors or torch.")
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Else export/FORMAT in the run."),
    ] = None,
    weights: WhichWeights = "best",
    root: DataRoot = None,
    runs: Runs = "runs",
) -> None:
    """Export a run's network, after verifying that it equals the run on the test images."""
    from raycnn.analysis import export as exports
    from raycnn.runs.directory import Run

    exported = exports.export(
        Run.find(run, runs, trained=True), kind, folder=output, weights=weights, root=root
    )
    print(exported.file)
    print(
        f"equal to the run: {exported.hits:,} of {exported.answers:,} answers on the test images "
        f"are correct, logits within {exported.difference:.1g}"
    )
    if kind == "onnx":
        print(f"next: python {quote(str(exported.folder / 'predict.py'))} PICTURE...")
        print(f"for Ascend (untested): {exports.atc_command(exported)}")
    elif kind == "safetensors":
        print(f"next: raycnn predict {quote(str(exported.folder))} PICTURE...")
    else:
        print(f"next: torch.export.load({str(exported.file)!r}).module()")
