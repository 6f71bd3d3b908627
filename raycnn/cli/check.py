"""`raycnn check`."""

from raycnn import spec
from raycnn.cli.arguments import Changes, Job


def check(job: Job, changes: Changes = None) -> None:
    """Check a job without training it: names, options, shapes, data, devices, storage."""
    resolved = spec.load(job, changes or [])
    from raycnn import launch
    from raycnn.check import check as check_job

    found = check_job(resolved, elsewhere=launch.elsewhere(resolved.workers))
    with resolved.located():
        launch.require(resolved.workers)
    where = launch.launcher_of(resolved.workers)
    print(f"{job}: job {resolved.name}")
    print(f"  data     {resolved.data.name}: {found.classes} classes, {len(found.files)} files")
    print(
        f"  model    {resolved.model.name}: {found.shape} images, {found.parameters:,} parameters"
    )
    print(f"  workers  {resolved.workers.asked} on {found.kind}, launcher {where}")
