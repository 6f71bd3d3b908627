"""Exit from a worker process without finalizing Python. The exit codes are in errors.py."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def without_finalizing() -> Iterator[None]:
    """Exit after this block without finalizing Python, if the process joined a process group.

    During finalization, a gloo thread that releases a tensor, as happens under load, would abort
    it (SIGABRT: "terminate called without an active exception"), and a successful job would
    end as failed: pytorch/pytorch issue 190489. Waiting for these threads could take as long as the
    timeout for a lost worker. Functions registered with atexit run; a caller's `finally` does not.
    """
    try:
        yield
    except BaseException as error:
        if not _joined_group():
            raise
        _exit_now(error)
    if _joined_group():
        _exit_now(None)


def _joined_group() -> bool:
    dist = sys.modules.get("raycnn.runtime.distributed")  # slow to import
    return dist is not None and dist.has_joined_group


def _exit_now(error: BaseException | None) -> NoReturn:
    code = 1
    try:
        code = _exit_code(error)
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    finally:
        os._exit(code)


def _exit_code(error: BaseException | None) -> int:
    """Return the exit code that Python would use; print an uncaught error."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int | None):
            return error.code or 0
        print(error.code, file=sys.stderr)
    elif error:
        sys.excepthook(type(error), error, error.__traceback__)
    return 1 if error else 0
