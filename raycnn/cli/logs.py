"""The command `raycnn logs`: show the output of a submitted job."""

from typing import Annotated

import typer

from raycnn.cli.arguments import Address, JobId


def logs(
    job: JobId,
    follow_log: Annotated[
        bool,
        typer.Option("-f", "--follow", help="Follow it, and end with its exit code."),
    ] = False,
    address: Address = None,
) -> None:
    """Show the output of a submitted job."""
    from raycnn.cli.remote import connect, follow

    cluster = connect(address)
    name = cluster.find(job).submission_id
    if follow_log:
        follow(cluster, name)
    else:
        print(cluster.log(name), end="")
