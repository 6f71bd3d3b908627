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

    def __init__(self, decay: float, parameters: Mapping[str, Parameter]):
        self.decay, self.parameters = decay, parameters
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}
        """The average of each parameter, by the parameter's name."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the parameters after step `step` of the run, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))  # early weights decay fast
        parameters: list[Tensor] = list(self.parameters.values())
        torch._foreach_lerp_(list(self.tensors.values()), parameters, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by their average for the duration of a block."""
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        copy_tensors(src=self.tensors, dst=self.parameters)
        try:
            yield
        finally:
            copy_tensors(src=raw, dst=self.parameters)


@torch.no_grad()
def copy_tensors(*, src: Mapping[str, Tensor], dst: Mapping[str, Tensor]) -> None:
    """Overwrite each tensor of `dst`, in place, with the one of the same name in `src`."""
    for name, tensor in dst.items():
        tensor.copy_(src[name])
