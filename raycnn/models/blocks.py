"""Pieces that several networks are made of."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from raycnn.shape import Shape

Layer = Callable[..., nn.Module]

ACTIVATIONS: dict[str, Layer] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
SMALL_BELOW = 48  # pixels: 32 times smaller at the end, a large stem would leave one
POOLS: dict[str, Layer] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class BatchNorm(nn.BatchNorm2d):
    """Ioffe and Szegedy 2015, arXiv:1502.03167; one lone value is normalised as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        if self.training and x.numel() == self.num_features:  # it has no deviation
            weights = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *weights, eps=self.eps)
        return super().forward(x)


def is_small(stem: Literal["auto", "large", "small"], shape: Shape) -> bool:
    """Whether a network is to start without losing size, as small images need."""
    return min(shape.height, shape.width) < SMALL_BELOW if stem == "auto" else stem == "small"


def init(model: nn.Module, linear_std: float | None = None) -> None:
    """Convolutions as He et al. 2015, arXiv:1502.01852, equation 10, over their outputs."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.is_meta:  # drawing for the meta device imports half of torch
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
    """The images do not reach the end of a network."""


def width(features: nn.Module, shape: Shape) -> int:
    """How many numbers convolutions and pools, one after the other, make of one image.

    Raises TooSmall when nothing is left. The arithmetic is Dumoulin and Visin's, "A guide to
    convolution arithmetic for deep learning" (arXiv:1603.07285), relationship 6.
    """
    channels, *sides = shape
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            layout = sides, *map(_pair, (layer.kernel_size, layer.stride, layer.padding))
            up = getattr(layer, "ceil_mode", False)
            sides = [_steps(n, k, s, p, up) for n, k, s, p in zip(*layout, strict=True)]
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if min(sides) < 1:
            raise TooSmall(f"{shape} images leave nothing after {layer}")
    return channels * sides[0] * sides[1]


def _steps(n: int, kernel: int, stride: int, padding: int, up: bool) -> int:
    """How many windows lie along a side; `up` counts one that reaches over the edge as well."""
    over = stride - 1 if up else 0
    count = (n + 2 * padding - kernel + over) // stride + 1
    return count - 1 if up and (count - 1) * stride >= n + padding else count


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
