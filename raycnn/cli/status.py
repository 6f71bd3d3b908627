"""`raycnn status`."""

from typing import Annotated

import typer

from raycnn.cli.arguments import Address


def status(
    job: Annotated[
        str, typer.Argument(metavar="ID", help="Of a submitted job; else all, and the nodes.")
    ] = "",
    address: Address = None,
) -> None:
    """Show how a submitted job stands; or a cluster's nodes and jobs."""
    from raycnn.cli.remote import reach, show_jobs
    from raycnn.launch.ray.connection import table

    cluster = reach(address)
    if not job:
        print(table(cluster.nodes()))
        show_jobs(cluster)
        return
    found = cluster.job(job)
    about = found.metadata or {}
    said = cluster.log(job).strip().splitlines()
    print(f"state    {found.status.value}")
    print(
        f"job      {about['name']}, {about['verb']}, by {about['user']}, raycnn {about['raycnn']}"
    )
    print(f"folder   {cluster.folder(found) or 'none yet'}")
    if found.driver_exit_code is not None:
        print(f"ended    with exit code {found.driver_exit_code}")
    if said:
        print(f"last     {said[-1]}")
