"""The command line: one thin file for each verb. What is slow to import is imported by its verb."""

import os
import sys
from collections.abc import Callable

import typer

from raycnn.cli import exit
from raycnn.cli.arguments import is_rank_zero
from raycnn.cli.check import check
from raycnn.cli.compare_devices import compare_devices
from raycnn.cli.data import data
from raycnn.cli.doctor import doctor
from raycnn.cli.eval import evaluate
from raycnn.cli.fetch import fetch
from raycnn.cli.list import show
from raycnn.cli.logs import logs
from raycnn.cli.predict import predict
from raycnn.cli.schema import schema
from raycnn.cli.status import status
from raycnn.cli.stop import stop
from raycnn.cli.submit import submit
from raycnn.cli.summary import summary
from raycnn.cli.train import resume, train
from raycnn.cli.tune import tune
from raycnn.cli.verify import verify
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
    "submit": submit, "status": status, "logs": logs, "stop": stop, "fetch": fetch,
    "doctor": doctor, "compare-devices": compare_devices, "verify": verify,
}  # fmt: skip
for name, verb in verbs.items():
    app.command(name)(verb)


def main() -> None:
    """Run the command line; a user's error is a message and an exit code, without a traceback."""
    with exit.at_once():
        try:
            app()
        except RaycnnError as error:
            if is_rank_zero():
                print(f"raycnn: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except BrokenPipeError:  # `raycnn list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
