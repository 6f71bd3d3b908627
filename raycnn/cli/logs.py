"""`raycnn logs`."""

from typing import Annotated

import typer

from raycnn.cli.arguments import Address, JobId


def logs(
    job: JobId,
    on: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the job ends, and end as it does.")
    ] = False,
    address: Address = None,
) -> None:
    """Show what a submitted job has said."""
    from raycnn.cli.remote import follow, reach

    cluster = reach(address)
    name = cluster.job(job).submission_id or job
    if on:
        follow(cluster, name)
    else:
        print(cluster.log(name), end="")
