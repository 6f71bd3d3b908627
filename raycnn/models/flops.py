"""Count the floating-point operations of a network."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raycnn.shape import Shape


class LightDispatchMode(TorchDispatchMode):
    """A dispatch mode that does not import torch's compiler, which takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` as it is: torch would have its compiler skip it."""
        return False


class _FlopCounter(LightDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if flops := flop_registry.get(func.overloadpacket):
            self.total += flops(*args, **kwargs, out_val=out)
        return out


def count_flops(network: nn.Module, shape: Shape) -> int:
    """Return the operations for one image, two for each multiply-add, as torch counts them.

    The network maps a blank image in evaluation mode, and is left in the mode that it was in. (The
    meta device would compute nothing, but imports torch's compiler.)
    """
    mode, device = network.training, next(network.parameters()).device
    with torch.no_grad(), _FlopCounter() as counter:
        network.eval()(torch.zeros(1, *shape, device=device))
    network.train(mode)
    return counter.total
