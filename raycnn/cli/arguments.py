"""Arguments shared by several commands."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from raycnn.config import schema
from raycnn.config.changes import parse_changes
from raycnn.config.messages import describe_error
from raycnn.config.recipes import SUFFIXES, recipe_files
from raycnn.errors import SpecError
from raycnn.filesystem import is_uri
from raycnn.runtime.device import DEVICE_KINDS

if TYPE_CHECKING:
    from raycnn.training.from_folder import FolderJob


def _absolute(path: str | None) -> str | None:
    if path and is_uri(path):
        raise SpecError("is a URI: only a local or a shared path can be used", "--root")
    return path and os.path.abspath(Path(path).expanduser())


JobFile = Annotated[
    Path,
    typer.Argument(metavar="JOB", help="A YAML file, or a recipe (raycnn list recipes)."),
]
JobOrPictures = Annotated[
    Path,
    typer.Argument(
        metavar="JOB",
        help="A YAML file, a recipe (raycnn list recipes), or a folder of pictures.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the spec, e.g. optimizer.lr=0.1"),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's folder or URI, or job/n, or job for its latest."),
]
Runs = Annotated[str, typer.Option("--runs", help="Folder or URI that holds the runs.")]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A submitted job's id (raycnn list --jobs); or job/n, or job, there."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="http://host:8265 of a cluster; else RAYCNN_ADDRESS or RAY_ADDRESS."
    ),
]
Device = Annotated[str, typer.Option("--device", help=f"auto, {', '.join(DEVICE_KINDS)}.")]
WhichWeights = Annotated[str, typer.Option("--checkpoint", help="best or last.")]
DataRoot = Annotated[
    str | None,
    typer.Option("--root", help="Folder that holds the data, elsewhere.", callback=_absolute),
]

Entry = TypeVar("Entry", bound=schema.ComponentConfig)


def is_printing() -> bool:
    """Return whether this process prints, among those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def job_of_pictures(
    path: Path, changes: Iterable[str] | Mapping[str, Any] | None
) -> "FolderJob | None":
    """Return a job for a folder of pictures, None for any other path.

    Raises DataError or SpecError if no job can be generated.
    """
    if not path.expanduser().is_dir():
        return None
    from raycnn.training.from_folder import job_for_folder

    return job_for_folder(path, changes or [])


def is_job_file(word: str) -> bool:
    """Return whether an argument is the path of a job file."""
    return Path(word).suffix in SUFFIXES or Path(word).is_file()


def is_job(word: str) -> bool:
    """Return whether an argument names a job, also a recipe, not a registry entry."""
    return is_job_file(word) or word in recipe_files()


def chosen(kind: type[Entry], section: str, name: str, options: Iterable[str] | None) -> Entry:
    """Return a registry entry by its name, with options as key=value. Raises SpecError."""
    pairs = parse_changes(options or [], section)
    given = {key.removeprefix(f"{section}."): value for key, value in pairs.items()}
    try:
        return kind.model_validate({**given, "name": name})
    except ValidationError as error:
        detail = error.errors()[0]
        raise SpecError(
            describe_error(detail), ".".join([section, *map(str, detail["loc"])])
        ) from None
