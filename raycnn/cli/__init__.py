"""The command line: one thin file per command, imported when the command is called."""

import errno
import os
import sys
from typing import NoReturn

from raycnn.cli.commands import app
from raycnn.cli.worker_exit import without_finalizing
from raycnn.errors import DataError, RaycnnError, SpecError

__all__ = ["app", "main"]

REFUSED = {
    errno.EACCES: DataError.exit_code,
    errno.EPERM: DataError.exit_code,
    errno.ENAMETOOLONG: SpecError.exit_code,
}
"""The exit codes of errors of the file system that a path of the user causes."""


def main() -> None:
    """Run the command line; user errors give a message and an exit code, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal may lack characters of a file name
            stream.reconfigure(errors="backslashreplace")
    with without_finalizing():
        try:
            app(prog_name="raycnn")
        except RaycnnError as error:
            _exit(error, error.exit_code)
        except OSError as error:
            if not error.filename or error.errno not in REFUSED:
                raise
            _exit(error, REFUSED[error.errno])


def _exit(error: Exception, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # under torchrun only rank 0 prints it
        print(f"raycnn: {error}", file=sys.stderr)
    sys.exit(code)
