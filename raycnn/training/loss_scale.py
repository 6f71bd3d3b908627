"""Dynamic loss scaling for fp16.

Equivalent to torch.amp.GradScaler, on the same kernels; that class needs a torch.optim optimizer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossScale:
    """A loss scale that keeps fp16 gradients in range, updated without host synchronization.

    Micikevicius et al. 2017, arXiv:1710.03740, section 3.2: halved when a gradient overflows, and
    the step skipped; doubled after `GROWTH_INTERVAL` steps without overflow.
    """

    INIT_SCALE, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, device: torch.device):
        self.factor = torch.full((), self.INIT_SCALE, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self.overflow = torch.zeros((), device=device)
        """Scalar tensor (): 1 when the last gradients overflowed, else 0."""

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the factor, in place, and set `overflow`."""
        self.overflow.zero_()
        back = self.factor.reciprocal()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.overflow, back)

    def update(self) -> None:
        """Update the factor after a step, from `overflow`."""
        torch._amp_update_scale_(
            self.factor, self.good, self.overflow, 2.0, 0.5, self.GROWTH_INTERVAL
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint."""
        return {"scale/factor": self.factor, "scale/good": self.good}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors returned by `state_dict`."""
        for key, tensor in self.state_dict().items():
            if key in state:
                tensor.copy_(state[key])
