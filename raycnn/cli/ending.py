"""How a process ends that torchrun started."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_once() -> Iterator[None]:
    """End the process after this block without the interpreter's finalization, if torchrun's.

    A thread of gloo that lets go of a tensor at that moment, which is how a worker under load
    ends, would abort it (SIGABRT: "terminate called without an active exception"), and a job that
    went well would end as failed: pytorch/pytorch pull 179291. To wait for these threads first
    could take as long as it takes to give up on a worker that is gone.
    """
    if "RANK" not in os.environ:
        yield
        return
    try:
        yield
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 1)
