"""This process, or each process that torchrun started, as a worker. Ray is not imported."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from raycnn import device, dist
from raycnn.errors import SpecError
from raycnn.launch.stop import Stop
from raycnn.launch.worker import work
from raycnn.runs import Run, View
from raycnn.spec import JobSpec


def train(job: JobSpec, open_run: Callable[[], Run], view: View) -> Run:
    """Train the job in a run folder, going on from what is there; returns the run."""
    kind = device.find(job.workers.device)
    if dist.launched():
        dist.join(kind.backend, job.workers.timeout_s)
    try:
        _check_world(job)
        run = Run(Path(dist.from_first(lambda: str(open_run().folder))))
        chosen = kind.select(int(os.environ.get("LOCAL_RANK", 0)), job.workers.cpus)
        stop = Stop()
        with run.held() if dist.rank() == 0 else nullcontext(), stop.listening():
            work(job, run, chosen, view if dist.rank() == 0 else None, stop)
        return run
    finally:
        dist.leave()


def _check_world(job: JobSpec) -> None:
    if job.workers.count != dist.world():
        how = "torchrun started" if dist.launched() else "this process is"
        raise SpecError(
            f"{job.workers.count} workers are asked for, {how} {dist.world()}", "workers.count"
        )
