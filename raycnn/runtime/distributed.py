"""The workers of a job, as one of them sees it. Alone, every function here does nothing.

Nothing else in raycnn imports torch.distributed or asks for a rank to decide what to do.
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

_known = signature(nn.parallel.DistributedDataParallel).parameters
_buffers = "forward_sync_buffers" if "forward_sync_buffers" in _known else "broadcast_buffers"
OWN: dict[str, Any] = {_buffers: False}  # each worker has its own buffers

met = False  # whether this process has met other workers by itself: it is to end with care then


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    return rank() == 0


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def started() -> int:
    """How many processes torchrun started, or 1."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def backends() -> list[str]:
    """The collective backends that torch has here."""
    there = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    known = [name for name, is_there in there.items() if is_there()]
    return known + (["hccl"] if "hccl" in dist.Backend.backend_list else [])


def init_process_group(backend: str, timeout_s: int) -> None:
    """Meet the other workers that torchrun started."""
    global met
    met = True
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the workers of a tensor on the CPU, on every worker."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """Return the vectors (n,) of all workers, on the CPU and of any lengths, one after another."""
    if not dist.is_initialized():
        return values
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(values)
    every = torch.zeros(world_size(), int(all_reduce_sum(lengths).max()), dtype=values.dtype)
    every[rank(), : len(values)] = values
    rows = zip(all_reduce_sum(every), lengths.tolist(), strict=True)
    return torch.cat([row[:length] for row, length in rows])


def all_reduce_max(value: float) -> float:
    """The largest of what the workers have."""
    held = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(held, dist.ReduceOp.MAX)
    return held.item()


def gather_rows(rows: Tensor) -> Tensor | None:
    """Return the rows (n, ...) of all workers, rank by rank, on rank 0, and None on the others.

    The tensors are on the CPU; workers may have different numbers of rows, or none.
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
    """Do something on every worker; if it is refused on one, raise its error on all."""
    error: RaycnnError | None = None
    result: Any = None
    try:
        result = work()
    except RaycnnError as refused:
        error = refused
    errors: list[RaycnnError | None] = [error]
    if dist.is_initialized():
        errors = [None] * world_size()
        dist.all_gather_object(errors, error)
    first = next(filter(None, errors), None)
    if first:
        raise first
    return result


def broadcast_from_rank_zero(work: Callable[[], T]) -> T:
    """Do something on rank 0 alone, and have its result, or its error, on every worker."""
    result = raise_on_any_rank(lambda: work() if rank() == 0 else None)
    if dist.is_initialized():
        held = [result]
        dist.broadcast_object_list(held)
        result = held[0]
    return cast(T, result)


def is_peer_loss(error: BaseException) -> bool:
    """Whether a collective failed because another worker is gone, and not by a fault of its own."""
    closed = isinstance(error, RuntimeError) and "gloo" in str(error)
    return closed or isinstance(error, dist.DistError)


def is_timeout(error: RuntimeError) -> bool:
    """Whether a collective waited for another worker as long as it may."""
    return is_peer_loss(error) and "timed out" in str(error).lower()


def replicate(model: nn.Module, image: Tensor) -> nn.Module:
    """The model, with its gradients averaged over the workers (PyTorch's DDP).

    After its first backward pass DDP lays its buckets out anew, and with them the order in which
    floats are summed. One pass here, over one image (1, C, H, W) and without effect, has that
    behind us: step k of a resumed run sums as step k of an unbroken one.
    """
    if not dist.is_initialized():
        return model
    ids = [image.device.index] if image.device.index is not None else None
    replica = nn.parallel.DistributedDataParallel(model, ids, gradient_as_bucket_view=True, **OWN)
    replica.eval()  # no batch statistics, no dropout
    replica(image).sum().backward()
    model.zero_grad()
    return replica


def no_sync(replica: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Let gradients add up without averaging them yet, for all parts of a batch but the last."""
    if wanted and isinstance(replica, nn.parallel.DistributedDataParallel):
        return cast(AbstractContextManager[None], replica.no_sync())
    return nullcontext()


def sync_batch_norm(model: nn.Module) -> nn.Module:
    """The model, with its batch norms over the batch of all workers (PyTorch's SyncBatchNorm)."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if world_size() > 1 else model


def broadcast_buffers(model: nn.Module) -> None:
    """Give every worker rank 0's buffers: in training each has its own."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class StopConsensus:
    """Does any worker want to stop? Voted on each step, known one step later, without waiting."""

    def __init__(self) -> None:
        self.stop = False
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None

    def vote(self, mine: bool) -> None:
        if not dist.is_initialized():
            self.stop |= mine
            return
        self.count()
        self._votes = torch.tensor([mine], dtype=torch.int32)
        self._pending = dist.all_reduce(self._votes, async_op=True)

    def count(self) -> None:
        """Have the last vote counted: every worker then knows the same `stop`."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            self.stop |= bool(self._votes.item())
