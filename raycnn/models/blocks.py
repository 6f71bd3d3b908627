"""Pieces that several networks are made of."""

from collections.abc import Callable
from typing import Any

from torch import nn

from raycnn.shape import Shape

Layer = Callable[..., nn.Module]

ACTIVATIONS: dict[str, Layer] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
POOLS: dict[str, Layer] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}



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
            sides = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(*layout, strict=True)]
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if min(sides) < 1:
            raise TooSmall(f"{shape} images leave nothing after {layer}")
    return channels * sides[0] * sides[1]


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
