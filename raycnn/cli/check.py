"""`raycnn check`."""

from raycnn.cli.arguments import Changes, Job
from raycnn.config.load import load_job


def check_job(job: Job, changes: Changes = None) -> None:
    """Check a job without training it: names, options, shapes, data, devices, storage."""
    resolved = load_job(job, changes or [])
    from raycnn.launch import dispatch, launcher
    from raycnn.training.preflight import check_job

    found = check_job(resolved, elsewhere=launcher.elsewhere(resolved.workers))
    with resolved.located():
        dispatch.require(resolved.workers)
    where = launcher.launcher_of(resolved.workers)
    print(f"{job}: job {resolved.name}")
    print(
        f"  data     {resolved.data.name}: {len(found.classes)} classes, {len(found.files)} files"
    )
    print(
        f"  model    {resolved.model.name}: {found.shape} images, {found.parameters:,} parameters"
    )
    for warning in found.warnings:
        print(f"  warning  {warning}")
    print(f"  workers  {resolved.workers.asked} on {found.kind}, launcher {where}")
