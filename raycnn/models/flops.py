"""Count the floating-point operations of a network."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raycnn.shape import Shape


class OperationMode(TorchDispatchMode):
    """Base class of modes that pass every operation inside their block to `record`.

    It does not import torch's compiler, which takes seconds.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # slow to import

        super().__init__()
        self._flops = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that torch does not wrap `__torch_dispatch__` for its compiler."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = self._flops.get(func.overloadpacket)
        self.record(func, args, kwargs, out, count(*args, **kwargs, out_val=out) if count else 0)
        return out

    def record(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, flops: int) -> None:
        """Record an operation, its arguments, result and floating-point operations."""
        raise NotImplementedError


class _FlopCounter(OperationMode):
    total = 0

    def record(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, flops: int) -> None:
        self.total += flops


def count_flops(network: nn.Module, shape: Shape) -> int:
    """Return the floating-point operations for one image, two for each multiply-add.

    The network maps a blank image in evaluation mode, and is left in the mode that it was in. (The
    meta device would compute nothing, but imports torch's compiler.)
    """
    was_training, device = network.training, next(network.parameters()).device
    with torch.no_grad(), _FlopCounter() as counter:
        # Not as a call, which torch would compile with the counter if the network is compiled.
        network.eval().forward(torch.zeros(1, *shape, device=device))
    network.train(was_training)
    return counter.total
