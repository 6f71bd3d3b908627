"""Ways to start a job's workers. The spec says which; the loop cannot tell them apart."""

import os
from collections.abc import Callable
from typing import Literal

from raycnn import dist
from raycnn.runs import Run, View
from raycnn.spec import JobSpec, Workers


def launcher_of(workers: Workers) -> Literal["ray", "local"]:
    """`auto`: what torchrun started, and one worker without an address, runs right here."""
    if workers.launcher != "auto":
        return workers.launcher
    alone = workers.count == 1 and not workers.address and "RAY_ADDRESS" not in os.environ
    return "local" if dist.launched() or alone else "ray"


def require(workers: Workers) -> None:
    """Raises ClusterError when the devices asked for are not there. Starts nothing."""
    if launcher_of(workers) == "ray":
        from raycnn.launch import cluster

        cluster.require(workers)


def train(job: JobSpec, open_run: Callable[[], Run], view: View) -> Run:
    """Train the job in the run that `open_run` opens, once there is somewhere to train it."""
    if launcher_of(job.workers) == "local":
        from raycnn.launch import local

        return local.train(job, open_run, view)

    from raycnn.launch import cluster

    with cluster.connected(job.workers) as nodes:
        from raycnn.launch import workers  # what it imports was imported while Ray started

        run = open_run()
        workers.train(job, run, nodes, view)
    return run
