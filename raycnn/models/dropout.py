"""Dropout whose masks do not depend on the number of workers.

Every worker draws the mask of the global batch from the seed of the step and uses the rows of its
share. The mask depends only on (seed, step), so a resumed step draws the same mask.
"""

import torch
from torch import Tensor, nn

# A tensor, since torch.compile would compile a network again for each value of a number.
_first = torch.zeros((), dtype=torch.int64, device="cpu")
_total = 0


def seed_step(seed: int, first: int, total: int, device: torch.device) -> None:
    """Seed the generator of `device` for a step.

    From then on this worker's images are rows `first` onwards of a batch of `total` images.
    """
    global _total
    if device.type == "cpu":  # torch.manual_seed would also seed all other devices, slowly
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)
    _first.fill_(first)
    _total = total


class Dropout(nn.Module):
    """Zero each value with probability `p`, and scale the others by 1 / (1 - p).

    Srivastava et al. 2014, JMLR 15, pages 1929 to 1958.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:  # (B, ...) -> (B, ...)
        if not self.training or self.p == 0:
            return x
        keep = torch.empty((max(_total, len(x)), *x.shape[1:]), dtype=x.dtype, device=x.device)
        keep.bernoulli_(1 - self.p).div_(1 - self.p)
        # A worker without a share has an image that does not count, whose row may be past the end.
        rows = (_first + torch.arange(len(x), device=x.device)) % len(keep)
        return x * keep.index_select(0, rows)
