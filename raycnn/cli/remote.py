"""What the verbs share that look at jobs on a cluster."""

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from raycnn.errors import Interrupted, JobFailed, SpecError

if TYPE_CHECKING:
    from raycnn.launch.jobs.client import Cluster, JobDetails


def reach(address: str | None) -> "Cluster":
    """The cluster that is meant. Raises SpecError for none, ClusterError when it is silent."""
    from raycnn.launch.jobs.client import Cluster, server_of

    server = server_of(address)
    if not server:
        raise SpecError("no cluster is named: --address http://host:8265, or RAYCNN_ADDRESS")
    return Cluster(server)


def show_jobs(cluster: "Cluster") -> None:
    for job in cluster.jobs():
        about = job.metadata or {}
        print(
            f"{job.submission_id:<52}{job.status.value:<11}{about['user']:<12}{_since(job)}".rstrip()
        )


def _since(job: "JobDetails") -> str:
    began = datetime.fromtimestamp((job.start_time or 0) / 1000)
    return f"{began:%Y-%m-%d %H:%M}"


def follow(cluster: "Cluster", name: str, ours: bool = False) -> None:
    """Show what a job says, and end as it does; Ctrl-C stops it only where the cluster is ours."""
    try:
        job = cluster.follow(name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if not ours:
            raise Interrupted(
                f"the job goes on: `raycnn logs -f {name}` watches, `raycnn stop {name}` stops it"
            ) from None
        print("saving, then stopping; again to stop now", flush=True)
        cluster.stop(name)
        job = cluster.follow(name, lambda text: None)
    end_as(job)


def end_as(job: "JobDetails") -> None:
    """Raises what gives this process the exit code that the job ended with."""
    if job.status.value == "STOPPED":
        raise Interrupted(f"{job.submission_id} was stopped")
    code = job.driver_exit_code
    if job.status.value == "SUCCEEDED" or code == 0:
        return
    if code is not None and code > 0:
        raise typer.Exit(code)  # its log ends with the reason
    killed = f"its process was killed by signal {-code}" if code else job.message
    raise JobFailed(f"{job.submission_id}: {killed}")
