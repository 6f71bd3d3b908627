"""Ways to start a job's workers. The spec says which; the loop cannot tell them apart."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from raycnn.config.schema import JobSpec, Workers
from raycnn.launch.launcher import address_of, launcher_of
from raycnn.runs.directory import Run
from raycnn.training.callbacks import Callback, ConnectingToRay

if TYPE_CHECKING:
    from raycnn.config.search import TuneSpec
    from raycnn.launch.ray.tune import Place
    from raycnn.search.folder import Search, SearchView


def require(workers: Workers) -> None:
    """Raises when the workers asked for are not there, or not to be reached."""
    if launcher_of(workers) == "local":
        from raycnn.launch import local

        local.check_world(workers)
    else:
        from raycnn.launch.ray import connection

        connection.require(workers)


def train(job: JobSpec, open_run: Callable[[], Run], view: Callback) -> Run:
    """Train the job in the run that `open_run` opens, once there is somewhere to train it."""
    if launcher_of(job.workers) == "local":
        from raycnn.launch import local

        return local.train(job, open_run, view)

    from raycnn.launch.ray import connection

    view.on_event(ConnectingToRay(address=address_of(job.workers)))
    with connection.connected(job.workers) as nodes:
        from raycnn.launch.ray import trainer  # what it imports was imported while Ray started

        return trainer.train(job, open_run, nodes, view)


def places(spec: "TuneSpec") -> "list[Place]":
    """Where the trials of a search could be trained at once. Raises ClusterError for nowhere."""
    from raycnn.launch.ray import connection

    nodes = connection.look(_trainers(spec)[0])
    from raycnn.launch.ray import tune

    return tune.places(spec, nodes)


def search(spec: "TuneSpec", open_search: "Callable[[], Search]", view: "SearchView") -> "Search":
    """Train the trials of a search, in the folder that `open_search` opens, once there is room."""
    from raycnn.launch.ray import connection

    trainers = _trainers(spec)
    where = address_of(trainers[0])
    for trainer in trainers if not where else ():
        connection.require(trainer)  # said before Ray takes its time
    view.note(ConnectingToRay(address=where).message)
    with connection.connected(trainers[0]) as nodes:
        from raycnn.launch.ray import tune

        return tune.run(spec, open_search, nodes, view)


def _trainers(spec: "TuneSpec") -> list[Workers]:
    """Those of one trial, in each pool."""
    address = spec.architectures[0].job.workers.address
    return [pool.trainers.model_copy(update={"address": address}) for pool in spec.tune.pools]
