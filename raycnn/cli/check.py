"""The command `raycnn check`: check a job without training it."""

import json
from shlex import join

from raycnn.cli.arguments import AsJson, Changes, JobOrPictures, job_of_pictures
from raycnn.config.load import load_job
from raycnn.errors import plural


def check(job: JobOrPictures, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check a job without training it: names, options, shapes, data, devices, storage."""
    generated = job_of_pictures(job, changes)
    spec = generated.job if generated else load_job(job.expanduser(), changes or [])
    from raycnn.launch import dispatch, launcher
    from raycnn.runs.preflight import check_job

    checked = check_job(spec, remote=launcher.is_remote(spec.workers))
    with spec.located():
        dispatch.require_workers(spec.workers)
    facts = {
        "job": spec.name,
        "data": spec.data.name,
        "classes": len(checked.classes),
        "files": len(checked.files),
        "model": spec.model.name,
        "image": list(checked.shape),
        "parameters": checked.parameters,
        "workers": spec.workers.count,
        "device": checked.kind,
        "warnings": list(checked.warnings),
        "launcher": launcher.launcher_of(spec.workers),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print(f"{job}: job {spec.name}")
    files = len(checked.files)
    counts = f"{len(checked.classes)} classes, {files:,} {plural('file', files)}"
    print(f"  data     {spec.data.name}: {counts}")
    print(
        f"  model    {spec.model.name}: {checked.shape} images, {checked.parameters:,} parameters"
    )
    for warning in checked.warnings:
        print(f"  warning  {warning}")
    print(f"  workers  {spec.workers.count_text} on {checked.kind}, launcher {facts['launcher']}")
    print(f"next: {join(['raycnn', 'train', str(job), *(changes or [])])}")
