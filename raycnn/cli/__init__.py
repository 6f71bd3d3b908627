"""The command line: one thin file for each verb. What is slow to import is imported by its verb."""

import os
import sys
from collections.abc import Callable

import typer

from raycnn.cli.arguments import leads
from raycnn.cli.check import check
from raycnn.cli.data import data
from raycnn.cli.eval import evaluate
from raycnn.cli.list import show
from raycnn.cli.predict import predict
from raycnn.cli.schema import schema
from raycnn.cli.summary import summary
from raycnn.cli.train import resume, train
from raycnn.cli.tune import tune
from raycnn.errors import RaycnnError

app = typer.Typer(
    help="Train CNN classifiers from one YAML job spec: in one process, or on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
verbs: dict[str, Callable[..., None]] = {
    "train": train, "resume": resume, "tune": tune, "eval": evaluate, "predict": predict,
    "list": show, "check": check, "data": data, "summary": summary, "schema": schema,
}  # fmt: skip
for name, verb in verbs.items():
    app.command(name)(verb)


def main() -> None:
    """Run the command line; a user's error is a message and an exit code, without a traceback."""
    try:
        app()
    except RaycnnError as error:
        if leads():
            print(f"raycnn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `raycnn list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
