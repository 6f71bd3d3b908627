"""The size of the micro-batches: what fits into the memory of the devices, halved until it does.

It is tried before training begins, and halved again if a device runs out of memory later.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from raycnn.config.schema import JobSpec, Train
from raycnn.errors import EnvironmentUnavailable, OutOfMemory, first_line
from raycnn.runtime import distributed
from raycnn.runtime.device import is_out_of_memory, peak_mib
from raycnn.training.callbacks import Callback, MicroBatchHalved
from raycnn.training.step import TrainStep, unlabeled_batch

Step = TypeVar("Step", bound=TrainStep)


def micro_batch_size(settings: Train) -> int:
    """Return the number of images per forward pass: `micro_batch`, at most a worker's share."""
    share = math.ceil(settings.batch_size / distributed.world_size())
    return min(settings.micro_batch or share, share)


def find_micro_batch_size(attempt: Callable[[int], None], size: int, callbacks: Callback) -> int:
    """Return `size`, halved until `attempt` with it fits into the memory of every device.

    Raises EnvironmentUnavailable if a single image does not fit.
    """
    while True:
        error: RuntimeError | None = None
        try:
            attempt(size)
        except RuntimeError as raised:
            if not is_out_of_memory(raised):
                raise
            error = raised.with_traceback(None)  # which would keep tensors of the attempt
        failures = torch.tensor([error is not None], dtype=torch.int32)
        if not distributed.all_reduce_sum(failures).item():
            return size
        size = _halve(size, callbacks, error)


def with_fitting_micro_batch(train_step: Step, shape: tuple[int, ...], callbacks: Callback) -> Step:
    """Return the step with its micro-batch halved until images of `shape` fit into the device.

    Raises EnvironmentUnavailable if a single image does not fit.
    """
    device = next(train_step.state.model.parameters()).device
    if device.type == "cpu":  # there a lack of memory ends the process, or swaps: no error tells
        return train_step
    attempt = partial(try_step, train_step, shape)
    size = find_micro_batch_size(attempt, train_step.micro_batch, callbacks)
    peak_mib(device)  # from here on, the peak is that of training
    return replace(train_step, micro_batch=size)


def try_step(train_step: TrainStep, shape: tuple[int, ...], size: int) -> None:
    """Run a forward and a backward pass over `size` images without changing any state.

    Memory for the optimizer state, which a step allocates later, is reserved meanwhile. Raises
    the error of torch if it does not fit.
    """
    optimizer = train_step.state.optimizer
    device = next(train_step.state.model.parameters()).device
    gc.collect()  # a compiled network of an earlier attempt is a cycle of references
    torch.get_device_module(device).empty_cache()
    reserved = [torch.empty_like(p) for p in optimizer.parameters.values() for _ in optimizer.state]
    batch = unlabeled_batch(torch.zeros(size, *shape, device=device), size)
    train_step.replica.eval()  # batch norm statistics stay as they are
    with distributed.no_sync(train_step.replica, enabled=True):
        train_step.loss(batch)[1].backward()
    optimizer.zero_grad()
    del reserved


def halve_micro_batch(
    job: JobSpec, micro_batch: int, error: RuntimeError, callbacks: Callback
) -> JobSpec:
    """Return the job with half the micro-batch, to be trained again from the last checkpoint.

    Raises EnvironmentUnavailable if a single image does not fit, and OutOfMemory if there are
    several workers: the others wait in the middle of a step, so all processes must restart.
    """
    size = _halve(micro_batch, callbacks, error)
    if distributed.world_size() > 1:
        text = f"rank {distributed.rank()} was out of memory on its device"
        raise OutOfMemory(text, size) from None
    return job.change({"train.micro_batch": size})


def _halve(size: int, callbacks: Callback, error: RuntimeError | None) -> int:
    """Return half the micro-batch size, rounded up, and send the event.

    Raises EnvironmentUnavailable if the size is 1: a single image does not fit.
    """
    if size == 1:
        raise EnvironmentUnavailable(
            "one image is too much for the memory of the device: take a smaller network"
            + (f" ({first_line(error)})" if error else "")
        )
    size = (size + 1) // 2
    callbacks.on_event(MicroBatchHalved(size=size))
    return size
