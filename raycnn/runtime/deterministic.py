"""Deterministic algorithms in torch, for the duration of a training run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raycnn.errors import SpecError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it once per process
CUBLAS_VALUE = ":4096:8"  # one of the two values that are deterministic
# Torch's error message has this after the operation's name.
NO_IMPLEMENTATION = " does not have a deterministic implementation"


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use deterministic algorithms inside the block if enabled, and restore the settings after it.

    If not, cuDNN measures which of its algorithms is the fastest for each shape.

    Raises SpecError if torch has no deterministic algorithm for an operation on its device.
    """
    was_enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if enabled:
        os.environ.setdefault(CUBLAS, CUBLAS_VALUE)  # never reset: cuBLAS reads it once per process
        torch.use_deterministic_algorithms(True)
    # Which algorithm the benchmark finds to be the fastest may differ from run to run.
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    except RuntimeError as error:
        if enabled and (message := _error_message(str(error))):
            raise SpecError(message, "train.deterministic") from None
        raise
    finally:
        if enabled:  # a call imports torch's compiler, which takes longer than a short training
            torch.use_deterministic_algorithms(was_enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _error_message(error: str) -> str | None:
    """Return why torch cannot be deterministic here; None for an error of another kind."""
    operation, is_missing, _ = error.partition(NO_IMPLEMENTATION)
    if is_missing:
        return f"torch has no deterministic {operation} here: use another network, or set it false"
    if CUBLAS in error:  # raised by the versions of torch that check the variable
        return f"needs {CUBLAS}={CUBLAS_VALUE} in the environment before this process uses cuBLAS"
    return None
