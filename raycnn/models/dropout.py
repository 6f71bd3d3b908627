"""Randomness inside a network, the same however many workers share a batch.

Every worker draws the noise of the whole batch from the step's own seed and uses the rows of its
share. What is drawn depends on (seed, step) alone, so a resumed step draws what it drew before.
"""

import torch
from torch import Tensor, nn

_first, _total = 0, 0


def seed_step(number: int, first: int, total: int, device: torch.device) -> None:
    """From here on this worker holds rows `first`... of a batch of `total` images."""
    global _first, _total
    if device.type == "cpu":  # torch.manual_seed would seed every other kind as well, slowly
        torch.default_generator.manual_seed(number)
    else:
        torch.get_device_module(device).manual_seed(number)
    _first, _total = first, total


class Dropout(nn.Module):
    """Srivastava et al. 2014, JMLR 15, pages 1929 to 1958; the rest is scaled by 1 / (1 - p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:  # (B, ...) -> (B, ...)
        if not self.training or self.p == 0:
            return x
        rows = max(_total, _first + len(x))
        keep = torch.empty((rows, *x.shape[1:]), dtype=x.dtype, device=x.device)
        keep.bernoulli_(1 - self.p).div_(1 - self.p)
        return x * keep[_first : _first + len(x)]
