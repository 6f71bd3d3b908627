"""Arguments that several verbs take."""

import os
from pathlib import Path
from typing import Annotated

import typer

Job = Annotated[Path, typer.Argument(metavar="JOB", help="A job spec: a YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the spec, e.g. optimizer.lr=0.1"),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or job/n, or job for its latest run.")
]
Runs = Annotated[str, typer.Option("--runs", help="Folder that holds the runs.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or npu.")]
Weights = Annotated[str, typer.Option("--checkpoint", help="best or last.")]


def leads() -> bool:
    """Whether this process is the one that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
