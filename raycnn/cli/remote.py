"""Functions shared by the commands for jobs on a cluster."""

from contextlib import suppress
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from raycnn.errors import ClusterError, Interrupted, JobFailed, SpecError
from raycnn.filesystem import is_uri

if TYPE_CHECKING:
    from raycnn.launch.jobs.client import Cluster, JobDetails


def connect(address: str | None) -> "Cluster":
    """Connect to a cluster and return it.

    Raises SpecError without an address, and ClusterError if the cluster does not respond.
    """
    from raycnn.launch.jobs.client import Cluster, server_of

    server = server_of(address)
    if not server:
        raise SpecError("no cluster address: set --address http://host:8265, or RAYCNN_ADDRESS")
    return Cluster(server)


def job_facts(job: "JobDetails") -> dict[str, Any]:
    """Return the properties of a job as plain values."""
    start = datetime.fromtimestamp((job.start_time or 0) / 1000)
    keys = ("name", "verb", "user", "raycnn")
    return {
        "id": job.submission_id,
        "state": job.status,
        "start": f"{start:%Y-%m-%d %H:%M}",
        **{key: job.metadata.get(key, "") for key in keys},
    }


def show_jobs(cluster: "Cluster") -> None:
    """Print a line for each job, within 80 columns unless its id is long."""
    rows = [job_facts(job) for job in cluster.jobs()]
    width = max((len(row["id"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['id']:<{width}}  {row['state']:<9}  {row['start']}  {row['user']}".rstrip())


def follow(cluster: "Cluster", name: str, stop_on_interrupt: bool = False) -> None:
    """Print a job's output, and exit with its code; Ctrl-C stops the job only if asked to.

    A job that Ctrl-C does not stop is on another machine: after it, print how to see its results.
    """
    try:
        job = cluster.follow(name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            raise Interrupted(
                f"the job continues: `raycnn logs -f {name}` watches, `raycnn stop {name}` stops it"
            ) from None
        print("saving, then stopping; press Ctrl-C again to stop now", flush=True)
        cluster.stop(name)
        job = cluster.follow(name, lambda text: None)
    exit_like(job)
    if not stop_on_interrupt:
        location = None
        with suppress(ClusterError):  # the job has succeeded, whatever becomes of the cluster
            location = cluster.location(job)
        print(f"on this machine: {command_for_results(name, location)}")


def command_for_results(name: str, location: str | None) -> str:
    """Return the command that brings the results of an ended job to this machine."""
    if location and is_uri(location):
        return f"raycnn report {quote(location)}"
    return f"raycnn fetch {name}"


def exit_like(job: "JobDetails") -> None:
    """Exit with the job's exit code, or an error if it was stopped or killed."""
    if job.status == "STOPPED":
        raise Interrupted(f"{job.submission_id} was stopped")
    code = job.driver_exit_code
    if job.status == "SUCCEEDED" or code == 0:
        return
    if code is not None and code > 0:
        raise typer.Exit(code)  # the log, which was printed, ends with the reason
    killed = f"its process was killed by signal {-code}" if code else job.message
    raise JobFailed(f"{job.submission_id}: {killed}")
