"""Dispatch jobs and searches to the launcher that the spec names: local or Ray."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from raycnn.config.schema import JobSpec, Workers
from raycnn.errors import ClusterError, EnvironmentUnavailable, Interrupted
from raycnn.filesystem import full_disk_errors
from raycnn.launch.launcher import address_of, can_span_machines, check_world, launcher_of
from raycnn.runs.directory import Run
from raycnn.training.callbacks import Callback, ConnectingToRay, StartingWorkers

if TYPE_CHECKING:
    from raycnn.config.search import TuneSpec
    from raycnn.launch.ray.tune import Slot
    from raycnn.search.folder import Search, SearchView


def require_workers(workers: Workers) -> None:
    """Raise SpecError or ClusterError when the requested workers are unavailable."""
    if launcher_of(workers) == "local":
        check_world(workers)
    else:
        from raycnn.launch.ray import connection

        connection.require_resources(workers)


def train(job: JobSpec, open_run: Callable[[], Run], view: Callback) -> Run:
    """Train a job, and return its run; `open_run` is called once the launcher is available."""
    if launcher_of(job.workers) == "local":
        from raycnn.launch import local

        return local.train_locally(job, open_run, view)

    from raycnn.launch.ray import connection
    from raycnn.launch.ray.resources import total

    view.on_event(ConnectingToRay(address=address_of(job.workers)))
    serve = can_span_machines(job.workers)  # before this process connects to a Ray of its own
    with connection.connected(job.workers, "raycnn.launch.ray.trainer") as nodes:
        from raycnn.launch.ray import trainer

        view.on_event(StartingWorkers(resources=total(nodes), workers=job.workers.count_text))
        run = trainer.train_on_ray(job, open_run, nodes, view, serve)
        return Run.open(run.location)  # with files from workers on other machines


def available_slots(spec: "TuneSpec") -> "list[Slot]":
    """Return the slots in which trials of a search can run at once. Raises ClusterError."""
    from raycnn.launch.ray import connection

    nodes = connection.find_nodes(_worker_configs(spec)[0])
    from raycnn.launch.ray import tune

    return tune.slots(spec, nodes)


def search(spec: "TuneSpec", open_search: "Callable[[], Search]", view: "SearchView") -> "Search":
    """Train the trials of a search that have not ended, and write the leaderboard and plots.

    `open_search` opens the folder, and is called once there are resources to train with. Raises
    Interrupted on a request to stop, ClusterError when the cluster is unreachable or too small, and
    EnvironmentUnavailable when the disk is full or the storage is unreachable.
    """
    if spec.architectures[0].job.workers.launcher == "local":
        from raycnn.launch import trial

        return _search(open_search, view, lambda opened: trial.run_here(opened, view))
    from raycnn.launch.ray import connection
    from raycnn.launch.ray.resources import total

    workers = _worker_configs(spec)
    where = address_of(workers[0])
    for pool in workers if not where else ():
        connection.require_resources(pool)  # fail before starting Ray
    view.log(ConnectingToRay(address=where).message)
    serve = can_span_machines(workers[0].model_copy(update={"launcher": "ray"}))
    with connection.connected(workers[0], "raycnn.launch.ray.tune") as nodes:
        from raycnn.launch.ray import tune

        view.log(f"Ray has {total(nodes)}; starting the trials")
        return _search(open_search, view, lambda opened: tune.run(opened, nodes, view, serve))


def _search(
    open_search: "Callable[[], Search]", view: "SearchView", train: "Callable[[Search], None]"
) -> "Search":
    opened = open_search()
    again = f"`{opened.resume_command}`"
    with opened.lock():
        try:
            with full_disk_errors(opened.location):
                train(opened)
        except Interrupted as error:
            raise Interrupted(f"{error}, and saved: {again}") from None
        except (ClusterError, EnvironmentUnavailable) as error:
            if again in str(error):
                raise
            raise type(error)(f"{error}: {again} continues") from None
        finally:
            _write_results_or_warn(opened, view.log)
    return opened


def complete(search: "Search", warn: Callable[[str], None]) -> None:
    """Write the leaderboard of a search whose trials have all ended, unless it was written.

    It was not if the process was killed after the last trial; what was not uploaded is uploaded.
    """
    from raycnn.search.leaderboard import is_written

    try:
        if is_written(search):
            search.flush()
            return
        with search.lock():
            _write_results_or_warn(search, warn)
    except EnvironmentUnavailable as error:  # the folder may be another user's
        warn(f"the leaderboard may not be up to date: {error}")


def _write_results_or_warn(search: "Search", warn: Callable[[str], None]) -> None:
    """Write the leaderboard and the report; an error is only a warning."""
    from raycnn.report.search import write_search_report_or_warn
    from raycnn.search.leaderboard import write_leaderboard

    try:
        board = write_leaderboard(search)
    except OSError as error:
        warn(f"the leaderboard is not written: {error}; `{search.resume_command}` tries again")
        return
    write_search_report_or_warn(search, board, warn)


def _worker_configs(spec: "TuneSpec") -> list[Workers]:
    """Return the workers of one trial in each pool."""
    address = spec.architectures[0].job.workers.address
    return [pool.worker_config.model_copy(update={"address": address}) for pool in spec.tune.pools]
