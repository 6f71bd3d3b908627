"""The command `raycnn status`: show the status of a submitted job, or of a cluster."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycnn.cli.arguments import Address, AsJson

if TYPE_CHECKING:
    from raycnn.launch.jobs.client import Cluster


def status(
    job: Annotated[
        str,
        typer.Argument(metavar="ID", help="A submitted job's id, or job/n, or job; else all."),
    ] = "",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show the status of a submitted job; or a cluster's nodes and jobs."""
    from raycnn.cli.remote import connect, job_facts, show_jobs
    from raycnn.launch.ray.resources import table

    cluster = connect(address)
    if job:
        facts = _facts(cluster, job)
        print(json.dumps(facts, indent=1) if as_json else _text(facts))
    elif as_json:
        nodes = [{"address": node.address, "total": node.total} for node in cluster.nodes()]
        jobs = [job_facts(job) for job in cluster.jobs()]
        print(json.dumps({"nodes": nodes, "jobs": jobs}, indent=1))
    else:
        print(table(cluster.nodes()))
        show_jobs(cluster)


def _facts(cluster: "Cluster", name: str) -> dict[str, Any]:
    from raycnn.cli.remote import job_facts

    job = cluster.find(name)
    log_lines = cluster.log(job.submission_id).strip().splitlines()
    return job_facts(job) | {
        "folder": cluster.location(job),
        "exit_code": job.driver_exit_code,
        "last_line": log_lines[-1] if log_lines else None,
    }


def _text(facts: dict[str, Any]) -> str:
    from raycnn.cli.remote import command_for_results

    name, ended = facts["id"], facts["exit_code"] is not None
    lines = [
        f"id       {name}",
        f"state    {facts['state']}",
        f"job      {facts['name']}, {facts['verb']}, by {facts['user']}, raycnn {facts['raycnn']}",
        f"folder   {facts['folder'] or 'none yet'}",
    ]
    if ended:
        lines.append(f"ended    with exit code {facts['exit_code']}")
    if facts["last_line"]:
        lines.append(f"last     {facts['last_line']}")
    command = command_for_results(name, facts["folder"]) if ended else f"raycnn logs -f {name}"
    return "\n".join([*lines, f"next     {command}"])
