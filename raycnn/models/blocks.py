"""Building blocks shared by several networks."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raycnn.shape import Shape

Channels = Annotated[int, Field(ge=1, le=1024)]
"""Channels of a network's first convolution, to which the others are in proportion."""
LayerFactory = Callable[..., nn.Module]

ACTIVATIONS: dict[str, LayerFactory] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
SMALL_BELOW = 48  # pixels: a large stem reduces by 32 overall, which would leave one pixel
POOLS: dict[str, LayerFactory] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167).

    A single value per channel has no variance: it is normalized by the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        if self.training and x.numel() == self.num_features:  # one value per channel: no variance
            weights = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *weights, eps=self.eps)
        return super().forward(x)


def is_small(stem: Literal["auto", "large", "small"], shape: Shape) -> bool:
    """Return whether to use the stem for small images, which keeps their resolution."""
    return min(shape.height, shape.width) < SMALL_BELOW if stem == "auto" else stem == "small"


def init_weights(model: nn.Module, linear_std: float | None = None) -> None:
    """Initialize convolutions as He et al. 2015 (arXiv:1502.01852, equation 10), by fan-out.

    Linear layers are drawn from a normal distribution with `linear_std`, if it is given.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.is_meta:  # sampling on meta imports half of torch
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std:
            nn.init.normal_(weight, std=linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TooSmall(ValueError):
    """The images are too small for a network: a layer's output would be empty."""


def width(features: nn.Module, shape: Shape) -> int:
    """Return the number of output features of convolutions and pools in sequence, for one image.

    Raises TooSmall if a layer's output would be empty. Dumoulin and Visin, "A guide to convolution
    arithmetic for deep learning" (arXiv:1603.07285), relationship 6.
    """
    channels, *sides = shape
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            layout = sides, *map(_pair, (layer.kernel_size, layer.stride, layer.padding))
            ceil = getattr(layer, "ceil_mode", False)
            sides = [_output_size(n, k, s, p, ceil) for n, k, s, p in zip(*layout, strict=True)]
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if min(sides) < 1:
            raise TooSmall(f"{shape} images leave nothing after {layer}")
    return channels * sides[0] * sides[1]


def _output_size(n: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Return the output size along one side; `ceil` rounds up, as torch's `ceil_mode` does."""
    extra = stride - 1 if ceil else 0
    count = (n + 2 * padding - kernel + extra) // stride + 1
    # As in torch, the last window must not start in the padding.
    return count - 1 if ceil and (count - 1) * stride >= n + padding else count


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
