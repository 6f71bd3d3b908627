"""Collectives over the workers of a job. In a single process each function is a no-op.

No other module of raycnn imports torch.distributed.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raycnn.errors import RaycnnError

T = TypeVar("T")

_ddp_options = signature(nn.parallel.DistributedDataParallel).parameters
# Newer versions of torch have renamed `broadcast_buffers`.
_sync_option = (
    "forward_sync_buffers" if "forward_sync_buffers" in _ddp_options else "broadcast_buffers"
)
NO_BUFFER_SYNC: dict[str, Any] = {_sync_option: False}
"""Option of DDP with which each worker keeps its own buffers in training."""

has_joined_group = False
"""Whether this process ever joined a process group: it must then exit with care."""


def rank() -> int:
    """Return the rank of this worker, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Return whether this worker has rank 0, which writes files and logs."""
    return rank() == 0


def is_launched() -> bool:
    """Return whether torchrun, or a launcher that sets its variables, started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def launched_world_size() -> int:
    """Return the number of processes that torchrun started, or 1."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def backends() -> list[str]:
    """Return the names of the collective backends in this build of torch."""
    checks = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    available = [name for name, is_available in checks.items() if is_available()]
    return available + (["hccl"] if "hccl" in dist.Backend.backend_list else [])


def init_process_group(backend: str, timeout_s: int) -> None:
    """Join the process group of the workers that torchrun started.

    Collectives fail after waiting `timeout_s` seconds for another worker.
    """
    global has_joined_group
    has_joined_group = True
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def destroy_process_group() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a CPU tensor over all ranks, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """Return the concatenated CPU vectors (n,) of all ranks; their lengths may differ."""
    if not dist.is_initialized():
        return values
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(values)
    padded = torch.zeros(world_size(), int(all_reduce_sum(lengths).max()), dtype=values.dtype)
    padded[rank(), : len(values)] = values
    rows = zip(all_reduce_sum(padded), lengths.tolist(), strict=True)
    return torch.cat([row[:length] for row, length in rows])


def all_reduce_max(value: float) -> float:
    """Return the maximum of a value over all ranks."""
    maximum = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return maximum.item()


def gather_rows(rows: Tensor) -> Tensor | None:
    """Return the concatenated rows (n, ...) of all ranks on rank 0, None on all other ranks.

    The tensors are on the CPU; ranks may have different numbers of rows, or none.
    """
    if not dist.is_initialized():
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    if rank():
        dist.gather(padded)
        return None
    parts = [torch.empty_like(padded) for _ in counts]
    dist.gather(padded, parts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def raise_on_any_rank(work: Callable[[], T]) -> T:
    """Call `work` on every rank and return its result.

    If it raises a RaycnnError on any rank, the first such error is raised on all ranks, so that
    none waits for another forever.
    """
    error: RaycnnError | None = None
    result: Any = None
    try:
        result = work()
    except RaycnnError as raised:
        error = raised
    errors: list[RaycnnError | None] = [error]
    if dist.is_initialized():
        errors = [None] * world_size()
        dist.all_gather_object(errors, error)
    first = next(filter(None, errors), None)
    if first:
        raise first
    return result


def broadcast_from_rank_zero(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 only; return its result, or raise its RaycnnError, on all ranks."""
    result = raise_on_any_rank(lambda: work() if rank() == 0 else None)
    if dist.is_initialized():
        objects = [result]
        dist.broadcast_object_list(objects)
        result = objects[0]
    return cast(T, result)


def is_peer_loss(error: BaseException) -> bool:
    """Return whether a collective failed because another rank ended or did not answer."""
    is_gloo_error = isinstance(error, RuntimeError) and "gloo" in str(error)
    return is_gloo_error or isinstance(error, dist.DistError)


def is_timeout(error: RuntimeError) -> bool:
    """Return whether a collective failed because it timed out waiting for another rank."""
    return is_peer_loss(error) and "timed out" in str(error).lower()


def replicate(model: nn.Module, image: Tensor) -> nn.Module:
    """Wrap the model in DistributedDataParallel, which averages gradients over the ranks.

    DDP rebuilds its buckets after the first backward pass, which changes the order of summation.
    A dry run here, on one image (1, C, H, W), triggers that beforehand, so that step k of a resumed
    run sums in the same order as step k of an uninterrupted one.
    """
    if not dist.is_initialized():
        return model
    ids = [image.device.index] if image.device.index is not None else None
    replica = nn.parallel.DistributedDataParallel(
        model, ids, gradient_as_bucket_view=True, **NO_BUFFER_SYNC
    )
    replica.eval()  # no batch statistics, no dropout
    replica(image).sum().backward()
    model.zero_grad()
    return replica


def no_sync(replica: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Return a context in which gradients are accumulated without averaging, if `enabled`.

    It is meant for all micro-batches of a step but the last.
    """
    if enabled and isinstance(replica, nn.parallel.DistributedDataParallel):
        return cast(AbstractContextManager[None], replica.no_sync())
    return nullcontext()


def sync_batch_norm(model: nn.Module) -> nn.Module:
    """Convert batch norms to SyncBatchNorm, which normalizes over the batch of all ranks."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if world_size() > 1 else model


def broadcast_buffers(model: nn.Module) -> None:
    """Overwrite the buffers of every rank with rank 0's; in training each rank has its own."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class StopConsensus:
    """The agreement of all ranks on whether to stop, without blocking: known one step later."""

    def __init__(self) -> None:
        self.stop = False
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None

    def vote(self, stop: bool) -> None:
        """Finish the previous vote, then start an asynchronous all-reduce of this rank's vote."""
        if not dist.is_initialized():
            self.stop |= stop
            return
        self.finish_vote()
        self._votes = torch.tensor([stop], dtype=torch.int32)
        self._pending = dist.all_reduce(self._votes, async_op=True)

    def finish_vote(self) -> None:
        """Wait for the pending vote, if any; the attribute `stop` is then equal on all ranks."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            self.stop |= bool(self._votes.item())
