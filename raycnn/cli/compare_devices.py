"""The command `raycnn compare-devices`: compare training steps on several devices."""

from typing import Annotated

import typer

from raycnn.cli.arguments import Changes, JobFile
from raycnn.config.load import load_job

HEADER = "step  device       loss  difference  largest gradient  difference  relative  where"


def compare_devices(
    job: JobFile,
    changes: Changes = None,
    devices: Annotated[
        str,
        typer.Option("--devices", help="Two or more device kinds, by commas."),
    ] = "cpu,cuda",
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many are compared.")] = 10,
) -> None:
    """Train the same steps on several devices, and show the differences of losses and gradients.

    Initial weights and batches are the same, and dropout is disabled. Every device is compared with
    the first.
    """
    spec = load_job(job, changes or [])
    from raycnn.analysis.compare_devices import compare_steps
    from raycnn.runs.preflight import resolve_job

    resolve_job(spec)
    names = [name.strip() for name in devices.split(",")]
    with spec.located():
        for row, gap in enumerate(compare_steps(spec, names, steps)):
            if not row:
                print(f"{spec.name}, {spec.train.precision}, against {names[0]}")
                print(HEADER)
            print(
                f"{gap.step:>4}  {gap.name:<6} {gap.loss:>10.4g}  {gap.loss_gap:>10.1e}  "
                f"{gap.largest:>16.4g}  {gap.gap:>10.1e}  {gap.relative:>8.1e}  {gap.where}",
                flush=True,
            )
