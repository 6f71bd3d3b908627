"""This process, or each process that torchrun started, as a worker. Ray is not imported."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from raycnn import device, dist
from raycnn.errors import SpecError
from raycnn.launch.stop import Stop
from raycnn.launch.worker import work
from raycnn.runs import Run, View
from raycnn.spec import JobSpec, Workers


def train(job: JobSpec, open_run: Callable[[], Run], view: View) -> Run:
    """Train the job in a run folder, going on from what is there; returns the run."""
    kind = device.find(job.workers.device)
    if dist.launched():
        dist.join(kind.backend, job.workers.timeout_s)
    with ExitStack() as held:
        held.callback(dist.leave)
        check_world(job.workers)
        chosen = kind.select(int(os.environ.get("LOCAL_RANK", 0)), job.workers.cpus)
        device.check_training(job.train, chosen.type)

        def open_and_hold() -> str:
            run = open_run()
            held.enter_context(run.held())
            return str(run.folder)

        run = Run(Path(dist.from_first(open_and_hold)))
        stop = Stop(busy=run.training)
        with stop.listening():
            work(job, run, chosen, view, stop)
        return run


def check_world(workers: Workers) -> None:
    """Raises SpecError unless as many processes are here as workers are asked for."""
    here = dist.started()
    if workers.count != here:
        how = "torchrun started" if dist.launched() else "this process is"
        raise SpecError(f"{workers.count} workers are asked for, {how} {here}", "workers.count")
