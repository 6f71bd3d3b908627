"""`raycnn check`."""

import json

from raycnn.cli.arguments import AsJson, Changes, JobOrPictures, job_of_pictures
from raycnn.config.load import load_job


def check(job: JobOrPictures, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check a job without training it: names, options, shapes, data, devices, storage."""
    made = job_of_pictures(job, changes)
    resolved = made.job if made else load_job(job.expanduser(), changes or [])
    from raycnn.launch import dispatch, launcher
    from raycnn.training.preflight import check_job

    found = check_job(resolved, remote=launcher.is_remote(resolved.workers))
    with resolved.located():
        dispatch.require_workers(resolved.workers)
    facts = {
        "job": resolved.name,
        "data": resolved.data.name,
        "classes": len(found.classes),
        "files": len(found.files),
        "model": resolved.model.name,
        "image": list(found.shape),
        "parameters": found.parameters,
        "workers": resolved.workers.count,
        "device": found.kind,
        "warnings": list(found.warnings),
        "launcher": launcher.launcher_of(resolved.workers),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print(f"{job}: job {resolved.name}")
    print(
        f"  data     {resolved.data.name}: {len(found.classes)} classes, {len(found.files)} files"
    )
    print(
        f"  model    {resolved.model.name}: {found.shape} images, {found.parameters:,} parameters"
    )
    for warning in found.warnings:
        print(f"  warning  {warning}")
    print(f"  workers  {resolved.workers.count_text} on {found.kind}, launcher {facts['launcher']}")
    print(f"next: raycnn train {job}")
