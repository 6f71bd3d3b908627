"""The command `raycnn lr-finder`: suggest a learning rate by a range test."""

from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from raycnn.cli.arguments import Changes, Device, JobFile
from raycnn.config.load import load_job
from raycnn.errors import EnvironmentUnavailable, SpecError


def lr_finder(
    job: JobFile,
    changes: Changes = None,
    low: Annotated[float, typer.Option("--min", help="First learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option("--max", help="Last learning rate.")] = 10.0,
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="From the first to the last.")
    ] = 100,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plot.")] = Path(
        "lr-finder.png"
    ),
    device: Device = "auto",
) -> None:
    """Suggest a learning rate: train at growing ones until the loss diverges, and plot it.

    No run is created or changed.
    """
    if not 0 < low < high:
        raise SpecError(f"--min {low:g} must be above 0, and below --max {high:g}")
    if output.suffix != ".png" or not output.absolute().parent.is_dir():
        raise SpecError(f"--output {output}: must be a .png in a folder that exists")
    spec = load_job(job, changes or [])
    from raycnn.analysis.lr_finder import find_lr
    from raycnn.report.lr_finder import plot_range_test
    from raycnn.runs.preflight import resolve_job
    from raycnn.runtime import device as devices

    resolve_job(spec)
    job_lr = float(spec.optimizer.options["lr"])
    chosen = devices.find(device).select(0, spec.workers.cpus)
    with spec.located():
        result = find_lr(spec, chosen, low, high, steps)
    try:
        plot_range_test(result, job_lr, f"{spec.name}: learning-rate range test", output)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write {output}: {error}") from None
    print(f"suggested optimizer.lr: {result.suggestion:g}, where the loss falls most steeply")
    print(f"the job has {job_lr:g}; plot: {output}")
    kept = [change for change in changes or [] if not change.startswith("optimizer.lr=")]
    words = ["raycnn", "train", str(job), *kept, f"optimizer.lr={result.suggestion:g}"]
    print(f"next: {join(words)}")
