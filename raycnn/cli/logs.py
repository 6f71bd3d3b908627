"""`raycnn logs`."""

from typing import Annotated

import typer

from raycnn.cli.arguments import Address, JobId


def logs(
    job: JobId,
    on: Annotated[
        bool,
        typer.Option("-f", "--follow", help="Follow it, and end with its exit code."),
    ] = False,
    address: Address = None,
) -> None:
    """Show the output of a submitted job."""
    from raycnn.cli.remote import find_job, follow, reach

    cluster = reach(address)
    name = find_job(cluster, job).submission_id or job
    if on:
        follow(cluster, name)
    else:
        print(cluster.log(name), end="")
