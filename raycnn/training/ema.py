"""The exponential moving average (EMA) of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class EMA:
    """An exponential moving average of parameters, whose decay warms up to `decay`.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. The average
    is validated, tested and saved as the model; the raw weights are saved for resuming.
    """

    def __init__(self, decay: float, named: Mapping[str, Parameter]):
        self.decay, self.named = decay, named
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the parameters after step `step` of the run, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))  # so that early weights decay fast
        torch._foreach_lerp_(list(self.tensors.values()), list(self.named.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by their average for the duration of a block."""
        raw = {name: p.detach().clone() for name, p in self.named.items()}
        copy(self.tensors, self.named)
        try:
            yield
        finally:
            copy(raw, self.named)


@torch.no_grad()
def copy(tensors: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters or tensors of the same names."""
    for name, tensor in named.items():
        tensor.copy_(tensors[name])
