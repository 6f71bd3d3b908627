"""LeNet: "Gradient-Based Learning Applied to Document Recognition", LeCun et al. 1998, figure 2.

The form taught today: plain average pooling and a linear output in place of the paper's trainable
subsampling, sparse connections and radial-basis output. `activation: relu, pool: max` is the
modern variant. B images, C channels, K classes; the sizes noted below are for 28 x 28 images.
"""

from typing import Literal

from torch import Tensor, nn

from raycnn.models.blocks import ACTIVATIONS, POOLS, LayerFactory, width
from raycnn.shape import Shape


class LeNet(nn.Module):
    """LeNet-5 with plain pooling, full connections and a linear output."""

    def __init__(self, shape: Shape, classes: int, activation: LayerFactory, pool: LayerFactory):
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Conv2d(shape.channels, 6, 5, padding=2), activation(), pool(2)
        )
        self.stage2 = nn.Sequential(nn.Conv2d(6, 16, 5), activation(), pool(2))
        flat = width(nn.Sequential(self.stage1, self.stage2), shape)
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, 120), activation(), nn.Linear(120, 84), activation()
        )
        self.head = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,  C, 28, 28)
        x = self.stage1(x)                   # (B,  6, 14, 14)
        x = self.stage2(x)                   # (B, 16,  5,  5)
        x = self.hidden(x)                   # (B, 84)
        return self.head(x)                  # (B, K)


def lenet(
    shape: Shape,
    classes: int,
    *,
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
    pool: Literal["avg", "max"] = "avg",
) -> nn.Module:
    """Return a LeNet-5 with Xavier initialization. Raises TooSmall for too small images."""
    model = LeNet(shape, classes, ACTIVATIONS[activation], POOLS[pool])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)  # torch's default makes sigmoids train slowly
    return model
