"""Dynamic loss scaling for fp16.

As torch.amp.GradScaler does it, on the same kernels; that class works on torch.optim's optimizers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossScale:
    """A factor that keeps fp16 gradients in range, adjusted without waiting for the device.

    Micikevicius et al. 2017, arXiv:1710.03740, section 3.2: halved when a gradient overflows, and
    that step skipped; doubled after `GROWTH_INTERVAL` steps without.
    """

    INIT_SCALE, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, device: torch.device):
        self.factor = torch.full((), self.INIT_SCALE, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self.overflow = torch.zeros((), device=device)
        """(): 1 when the last gradients overflowed, else 0."""

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the factor, in place, and find out whether they overflowed."""
        self.overflow.zero_()
        back = self.factor.reciprocal()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.overflow, back)

    def update(self) -> None:
        """Adjust the factor after a step."""
        torch._amp_update_scale_(
            self.factor, self.good, self.overflow, 2.0, 0.5, self.GROWTH_INTERVAL
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint has of it."""
        return {"scale/factor": self.factor, "scale/good": self.good}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        for key, tensor in self.state_dict().items():
            if key in state:
                tensor.copy_(state[key])
