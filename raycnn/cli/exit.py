"""How the process of a worker ends."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def at_once() -> Iterator[None]:
    """End the process after this block, if it met other workers, without finalizing Python.

    A thread of gloo that lets go of a tensor meanwhile, as happens under load, would abort it there
    (SIGABRT: "terminate called without an active exception"), and a job that went well would end as
    failed: pytorch/pytorch issue 190489. To wait for these threads first could take as long as it
    takes to give up on a worker that is gone. What is registered with atexit is done, a caller's
    `finally` is not.
    """
    try:
        yield
    except BaseException as error:
        if not _met_others():
            raise
        _end(error)
    if _met_others():
        _end(None)


def _met_others() -> bool:
    dist = sys.modules.get("raycnn.runtime.distributed")  # it takes seconds to import
    return dist is not None and dist.met


def _end(error: BaseException | None) -> NoReturn:
    code = 1
    try:
        code = _code(error)
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    finally:
        os._exit(code)


def _code(error: BaseException | None) -> int:
    """The process's exit code, as Python itself has it; an error that nobody caught is shown."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int | None):
            return error.code or 0
        print(error.code, file=sys.stderr)
    elif error:
        sys.excepthook(type(error), error, error.__traceback__)
    return 1 if error else 0
