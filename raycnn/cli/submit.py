"""The command `raycnn submit`: train a job or a search on a Ray cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Address, Changes, job_of_pictures
from raycnn.config.load import load_job, read_spec
from raycnn.config.schema import JobSpec
from raycnn.config.search import load_search
from raycnn.errors import DataError, EnvironmentUnavailable, SpecError

if TYPE_CHECKING:
    from raycnn.config.search import TuneSpec


def submit(
    job: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB",
            help="A job or a search: a YAML file, or a recipe (raycnn list recipes); or a "
            "folder of pictures.",
        ),
    ] = None,
    changes: Changes = None,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Follow the job; or print its id, and end.")
    ] = True,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Resume a run there: a job's id, or job/n."),
    ] = None,
    code: Annotated[
        bool, typer.Option("--with-code", help="Run on this raycnn, sent along: not the cluster's.")
    ] = False,
) -> None:
    """Train a job, or search, on a Ray cluster, and follow it from here.

    The spec is checked here, and its workers against the cluster's resources. Its paths are the
    cluster's: relative ones are below the home folder of the user who started Ray on the head node,
    so runs are written to `runs` there, and RAYCNN_DATA is the one set there. A folder of pictures
    is not sent: the nodes must see it at the same path.

    Exits with the job's own exit code. Ctrl-C does not stop the job: `raycnn logs -f ID` follows it
    again, `raycnn stop ID` saves and stops it, `raycnn submit --resume ID` resumes it.

    Without an address a local Ray is started for the job, in this folder, and stopped at its end;
    --detach needs an address.
    """
    if resume is not None and job is not None:  # with --resume the first argument is a change
        changes, job = [str(job), *(changes or [])], None
    if (job is None) == (resume is None):
        raise SpecError("give a job to submit, or a run to resume: --resume RUN")
    generated = job_of_pictures(job, changes) if job else None
    if generated:
        spec: JobSpec | TuneSpec | None = generated.job
    else:
        spec = _load(job, changes or []) if job else None
    if spec:
        _check(spec)
    from raycnn.cli.remote import connect, follow
    from raycnn.launch.jobs.client import server_of

    if spec and wait and not server_of(address):
        _submit_locally(spec, code)
        return
    cluster = connect(address)
    if generated:
        print(f"{generated.summary}: the cluster's nodes must see the same folder")
    if spec:
        name = cluster.submit(spec, code=code)
    else:
        name = cluster.resume(str(resume), changes or [], code=code)
    print(f"{name} at {cluster.server}", flush=True)
    if wait:
        follow(cluster, name)


def _load(file: Path, changes: list[str]) -> "JobSpec | TuneSpec":
    is_search = "tune" in read_spec(file, changes)[0]
    return load_search(file, changes) if is_search else load_job(file, changes)


def _check(spec: "JobSpec | TuneSpec") -> None:
    """Check a spec, as far as that is possible without the cluster's files."""
    from raycnn.data.splits import is_copied
    from raycnn.runs.preflight import check_settings, resolve_remote_job
    from raycnn.search.preflight import check_search, check_search_settings

    search = None if isinstance(spec, JobSpec) else spec
    job = spec if isinstance(spec, JobSpec) else spec.architectures[0].job
    try:
        if is_copied(job.data):
            check_search_settings(search) if search else check_settings(job)
            path = job.data.options["path"]
            print(f"not checked here, but on the cluster: {path} would be copied to this machine")
        elif search:
            check_search(search, remote=True)
        else:
            resolve_remote_job(job)
    except (DataError, EnvironmentUnavailable) as error:
        print(f"not checked here, but on the cluster: {error}")


def _submit_locally(spec: "JobSpec | TuneSpec", code: bool) -> None:
    """Submit to a Ray that is started here for this job, and follow it."""
    from raycnn.cli.remote import follow
    from raycnn.launch.jobs import head
    from raycnn.training.callbacks import ConnectingToRay

    print(ConnectingToRay(address=None).message, flush=True)
    with head.started() as cluster:
        name = cluster.submit(spec, folder=str(Path.cwd()), code=code)
        print(f"{name} at {cluster.server}", flush=True)
        follow(cluster, name, stop_on_interrupt=True)
