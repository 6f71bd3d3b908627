"""The command `raycnn fetch`: copy a run or a search from a cluster."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from raycnn.cli.arguments import Address


def fetch(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A submitted job's id; or job/n, or job, there.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="FOLDER", help="The copy; else runs/job/n, or the next number."
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Copy the folder of a run, or a search, from a cluster's head node to here."""
    from raycnn.cli.remote import connect
    from raycnn.launch.jobs import download

    folder = download.fetch(connect(address), run, to).absolute()
    print(folder)
    if (report := folder / "report.html").is_file():
        print(f"report {report}")
    print(f"next: raycnn {_next_verb(folder)} {quote(str(folder))}")


def _next_verb(folder: Path) -> str:
    if not (folder / "job.yaml").is_file():
        return "tune --resume"
    return "eval" if (folder / "result.json").is_file() else "resume"
