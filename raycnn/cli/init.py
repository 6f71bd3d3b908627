"""The command `raycnn init`: write a job spec for a folder of pictures."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from raycnn.cli.arguments import Changes
from raycnn.errors import EnvironmentUnavailable, SpecError


def init(
    pictures: Annotated[
        Path,
        typer.Argument(metavar="PICTURES", help="A folder with a folder of pictures per class."),
    ],
    changes: Changes = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the spec is written.")
    ] = Path("job.yaml"),
) -> None:
    """Write a commented job spec for a folder of pictures."""
    if output.exists():
        raise SpecError(f"{output} already exists: set another with -o FILE")
    from raycnn.training.from_folder import job_for_folder

    generated = job_for_folder(pictures, changes or [])
    try:
        output.write_text(generated.text(), encoding="utf-8")
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write {output}: {error.strerror}") from None
    print(f"{output}: {generated.summary}")
    print(f"next: raycnn train {quote(str(output))}")
