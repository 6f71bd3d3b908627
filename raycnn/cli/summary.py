"""The command `raycnn summary`: show a network layer by layer."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import AsJson, Changes, chosen, is_job
from raycnn.config import schema
from raycnn.config.load import load_job
from raycnn.errors import SpecError
from raycnn.shape import Shape

if TYPE_CHECKING:
    from raycnn.analysis.summary import Layer, Summary

COLUMNS = ["layer", "kind", "output", "parameters", "multiply-adds", "field", "stride"]


def summary(
    network: Annotated[
        str, typer.Argument(metavar="MODEL|JOB", help="A name of `raycnn list models`, or a job.")
    ],
    changes: Changes = None,
    image: Annotated[
        str | None, typer.Option("--image", help="CHANNELSxROWSxCOLUMNS; 3x224x224 if not given.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=2, help="1000 if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a network layer by layer: shapes, parameters, multiply-adds, receptive fields.

    Options of a MODEL are key=value; a JOB's image size and classes are its data's. `field` is the
    receptive field along a side, `stride` the cumulative stride, in pixels; a dash means unknown.
    """
    if is_job(network) and (image or classes):
        raise SpecError(f"--image and --classes are for a model; {network} is a job, with its own")
    shape = _shape(image or "3x224x224")
    import torch

    from raycnn import models
    from raycnn.analysis.summary import summarize

    if is_job(network):
        from raycnn.runs.preflight import resolve_job

        resolved = resolve_job(load_job(Path(network), changes or []))
        shape, model = resolved.shape, resolved.model
    else:
        choice = chosen(schema.Model, "model", network, changes)
        with torch.device("meta"):
            model = models.build_model(choice, shape, classes or 1000)
    result = summarize(model, shape)
    if as_json:
        print(json.dumps({"image": shape, **asdict(result)}, indent=1))
    else:
        _show(result, shape)


def _shape(text: str) -> Shape:
    sizes = [int(size) for size in re.findall(r"\d+", text)]
    if not re.fullmatch(r"\d+x\d+x\d+", text) or not all(0 < size <= 4096 for size in sizes):
        raise SpecError(f"--image {text!r} is not CHANNELSxROWSxCOLUMNS, such as 3x224x224")
    return Shape(*sizes)


def _show(summary: "Summary", image: Shape) -> None:
    rows = [COLUMNS, *map(_row, summary.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, (str.ljust, str.ljust, *[str.rjust] * 5), strict=True)
        print("  ".join(align(cell, width) for cell, width, align in cells).rstrip())
    print(f"\nfor one image of {image}, in evaluation:")
    parameters, activations = summary.parameters, summary.activations
    print(f"{parameters:>16,} parameters, {_fp32_mib(parameters)}")
    print(f"{summary.multiply_adds:>16,} multiply-adds")
    print(f"{activations:>16,} activations, {_fp32_mib(activations)}")


def _fp32_mib(count: int) -> str:
    return f"{count * 4 / 2**20:,.1f} MiB in fp32"


def _row(layer: "Layer") -> list[str]:
    return [
        layer.name or "(network)",
        layer.kind,
        "x".join(map(str, layer.shape)),
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        _square(layer.receptive_field),
        _square(layer.stride),
    ]


def _square(pair: tuple[int, int] | None) -> str:
    """Return a pair as text, as one number if both are equal."""
    return "x".join(map(str, sorted(set(pair)))) if pair else "-"
