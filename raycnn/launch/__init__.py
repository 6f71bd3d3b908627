"""Ways to start a job's workers. The spec says which; the loop cannot tell them apart."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from raycnn import device, dist
from raycnn.runs import Run, View
from raycnn.spec import JobSpec, Workers

if TYPE_CHECKING:
    from raycnn.launch.tune import Place
    from raycnn.search.folder import Search, SearchView
    from raycnn.search.spec import TuneSpec

device.set_npu_aside()

STARTING = "starting Ray and its workers: half a minute, on two cores"


def launcher_of(workers: Workers) -> Literal["ray", "local"]:
    """`auto`: what torchrun started, and one worker without an address, runs right here."""
    if workers.launcher != "auto":
        return workers.launcher
    alone = workers.most == 1 and not address_of(workers)
    return "local" if dist.launched() or alone else "ray"


def require(workers: Workers) -> None:
    """Raises when the workers asked for are not there, or not to be reached."""
    if launcher_of(workers) == "local":
        from raycnn.launch import local

        local.check_world(workers)
    else:
        from raycnn.launch import cluster

        cluster.require(workers)


def elsewhere(workers: Workers) -> bool:
    """Whether the devices may be another machine's."""
    return launcher_of(workers) == "ray" and bool(address_of(workers))


def address_of(workers: Workers) -> str | None:
    """Of the Ray cluster to run on, where there is one."""
    return workers.address or os.environ.get("RAY_ADDRESS")


def train(job: JobSpec, open_run: Callable[[], Run], view: View) -> Run:
    """Train the job in the run that `open_run` opens, once there is somewhere to train it."""
    if launcher_of(job.workers) == "local":
        from raycnn.launch import local

        return local.train(job, open_run, view)

    from raycnn.launch import cluster

    view.note(f"connecting to Ray at {where}" if (where := address_of(job.workers)) else STARTING)
    with cluster.connected(job.workers) as nodes:
        from raycnn.launch import workers  # what it imports was imported while Ray started

        return workers.train(job, open_run, nodes, view)


def places(spec: "TuneSpec") -> "list[Place]":
    """Where the trials of a search could be trained at once. Raises ClusterError for nowhere."""
    from raycnn.launch import cluster

    nodes = cluster.look(_trainers(spec)[0])
    from raycnn.launch import tune

    return tune.places(spec, nodes)


def search(spec: "TuneSpec", open_search: "Callable[[], Search]", view: "SearchView") -> "Search":
    """Train the trials of a search, in the folder that `open_search` opens, once there is room."""
    from raycnn.launch import cluster

    trainers = _trainers(spec)
    where = address_of(trainers[0])
    for trainer in trainers if not where else ():
        cluster.require(trainer)  # said before Ray takes its time
    view.note(f"connecting to Ray at {where}" if where else STARTING)
    with cluster.connected(trainers[0]) as nodes:
        from raycnn.launch import tune

        return tune.run(spec, open_search, nodes, view)


def _trainers(spec: "TuneSpec") -> list[Workers]:
    """Those of one trial, in each pool."""
    address = spec.architectures[0].job.workers.address
    return [pool.trainers.model_copy(update={"address": address}) for pool in spec.tune.pools]
