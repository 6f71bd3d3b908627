"""The factor that keeps the gradients of fp16 within its range."""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossScale:
    """Keeps the gradients of fp16 within its range, without waiting for the device.

    Micikevicius et al. 2017, arXiv:1710.03740, section 3.2: halved when a gradient overflows, and
    that step skipped; doubled after `PATIENCE` steps without.
    """

    FIRST, PATIENCE = 2.0**16, 2000

    def __init__(self, device: torch.device):
        self.factor = torch.full((), self.FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self.overflow = torch.zeros((), device=device)
        """1 when the last gradients overflowed."""

    def unscale(self, gradients: list[Tensor]) -> None:
        """Undo the scaling, and find out whether they overflowed."""
        self.overflow.zero_()
        back = self.factor.reciprocal()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.overflow, back)

    def update(self) -> None:
        torch._amp_update_scale_(self.factor, self.good, self.overflow, 2.0, 0.5, self.PATIENCE)

    def state(self) -> dict[str, Tensor]:
        return {"scale/factor": self.factor, "scale/good": self.good}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in self.state().items():
            if key in state:
                tensor.copy_(state[key])
