"""Deterministic algorithms in torch, for the duration of a training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raycnn.errors import SpecError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # read when a process first multiplies matrices on CUDA
CUBLAS_VALUE = ":4096:8"  # one of the two values that are deterministic
REFUSAL = " does not have a deterministic implementation"  # of torch, after the operation's name


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms inside the block if wanted, and restore the settings after it.

    Raises SpecError where torch has no deterministic algorithm for an operation on its device.
    """
    if not wanted:
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(CUBLAS, CUBLAS_VALUE)  # stays: cuBLAS reads it once per process
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it takes whichever algorithm is faster at the time
    try:
        yield
    except RuntimeError as error:
        if reason := _refusal(str(error)):
            raise SpecError(reason, "train.deterministic") from None
        raise
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _refusal(error: str) -> str | None:
    """Return why torch cannot be deterministic here; None for an error of another kind."""
    operation, refused, _ = error.partition(REFUSAL)
    if refused:
        return f"torch has no deterministic {operation} here: use another network, or set it false"
    if CUBLAS in error:  # versions of torch that check it
        return f"needs {CUBLAS}={CUBLAS_VALUE} in the environment before this process uses cuBLAS"
    return None
