"""A running average of the weights under training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class EMA:
    """A running average of the weights (Polyak and Juditsky 1992), whose decay rises to its own.

    What is kept and shipped is the average; the weights under training are kept beside it.
    """

    def __init__(self, decay: float, named: Mapping[str, Parameter]):
        self.decay, self.named = decay, named
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` of the run, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))  # early weights are soon forgotten
        torch._foreach_lerp_(list(self.tensors.values()), list(self.named.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the network meanwhile."""
        raw = {name: p.detach().clone() for name, p in self.named.items()}
        copy(self.tensors, self.named)
        try:
            yield
        finally:
            copy(raw, self.named)


@torch.no_grad()
def copy(tensors: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    """Put the tensors into the parameters, or other tensors, of the same names."""
    for name, tensor in named.items():
        tensor.copy_(tensors[name])
