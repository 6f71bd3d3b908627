"""GoogLeNet: "Going Deeper with Convolutions", Szegedy et al. 2014 (arXiv:1409.4842), table 1.

Departures from the paper: batch norm after every convolution, which makes the auxiliary heads
unnecessary. State-dict keys are torchvision's; torchvision has 3 x 3 kernels where the paper has
5 x 5 (`kernel: 3`). B images, C channels, K classes; the sizes below are for 224 x 224 images.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, Channels, is_small, width
from raycnn.models.dropout import Dropout
from raycnn.shape import Shape

# Output channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and the pool projection.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
CHANNELS = 64  # of the first convolution, where the others have the widths above
Stem = Literal["large", "medium", "small"]


class Conv(nn.Module):
    """A convolution with same padding, batch norm and ReLU."""

    def __init__(self, c: int, out: int, kernel: int, bias: bool, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c, out, kernel, stride, kernel // 2, bias=bias)
        self.bn = BatchNorm(out, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # (B, c, H, W) -> (B, out, H', W')
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four parallel branches over one input, concatenated along the channels (figure 2b)."""

    def __init__(self, c: int, widths: Sequence[int], kernel: int, bias: bool):
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.branch1 = Conv(c, one, 1, bias)
        self.branch2 = nn.Sequential(Conv(c, reduce3, 1, bias), Conv(reduce3, three, 3, bias))
        self.branch3 = nn.Sequential(Conv(c, reduce5, 1, bias), Conv(reduce5, five, kernel, bias))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(c, pool, 1, bias))
        self.out_channels = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:  # (B, c, H, W) -> (B, out_channels, H, W)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm and without auxiliary heads."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        kernel: int,
        bias: bool,
        dropout: float,
        stem: Stem,
        channels: int,
    ):
        super().__init__()
        large = stem == "large"
        self.conv1 = Conv(shape.channels, channels, 7 if large else 3, bias, 2 if large else 1)
        self.maxpool1 = halve(3) if large else nn.Identity()
        self.conv2 = Conv(channels, channels, 1, bias)
        self.conv3 = Conv(channels, 3 * channels, 3, bias)
        self.maxpool2 = nn.Identity() if stem == "small" else halve(3)
        self.maxpool3, self.maxpool4 = halve(3), halve(2)
        c = 3 * channels

        def inception(name: str) -> Inception:
            nonlocal c
            widths = [max(1, round(n * channels / CHANNELS)) for n in INCEPTION[name]]
            block = Inception(c, widths, kernel, bias)
            c = block.out_channels
            return block

        self.inception3a, self.inception3b = map(inception, ("3a", "3b"))
        self.inception4a, self.inception4b = map(inception, ("4a", "4b"))
        self.inception4c, self.inception4d = map(inception, ("4c", "4d"))
        self.inception4e = inception("4e")
        self.inception5a, self.inception5b = map(inception, ("5a", "5b"))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(c, classes)
        narrowing = self.conv1, self.maxpool1, self.maxpool2, self.maxpool3, self.maxpool4
        width(nn.Sequential(*narrowing), shape)

    def forward(self, x: Tensor) -> Tensor:     # (B,    C, 224, 224)
        x = self.maxpool1(self.conv1(x))        # (B,   64,  56,  56)
        x = self.conv3(self.conv2(x))           # (B,  192,  56,  56)
        x = self.maxpool2(x)                    # (B,  192,  28,  28)
        x = self.inception3a(x)                 # (B,  256,  28,  28)
        x = self.maxpool3(self.inception3b(x))  # (B,  480,  14,  14)
        x = self.inception4a(x)                 # (B,  512,  14,  14)
        x = self.inception4b(x)                 # (B,  512,  14,  14)
        x = self.inception4c(x)                 # (B,  512,  14,  14)
        x = self.inception4d(x)                 # (B,  528,  14,  14)
        x = self.maxpool4(self.inception4e(x))  # (B,  832,   7,   7)
        x = self.inception5a(x)                 # (B,  832,   7,   7)
        x = self.inception5b(x)                 # (B, 1024,   7,   7)
        x = self.flatten(self.avgpool(x))       # (B, 1024)
        return self.fc(self.dropout(x))         # (B, K)


def halve(kernel: int) -> nn.Module:
    """Return a max pool of stride 2, whose output size is rounded up."""
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


def googlenet(
    shape: Shape,
    classes: int,
    *,
    kernel: Literal[3, 5] = 5,
    bias: bool = False,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    stem: Literal["auto", "large", "medium", "small"] = "auto",
    channels: Channels = CHANNELS,
) -> nn.Module:
    """Return a GoogLeNet whose first convolution has `channels` channels, the others in proportion.

    The stem reduces the resolution to an eighth; `medium` to a half, and `small`, the default for
    images below 48 pixels, not at all. `kernel` is the size of the larger kernels; `bias` gives the
    convolutions biases.
    """
    if stem == "auto":
        stem = "small" if is_small(stem, shape) else "large"
    return GoogLeNet(shape, classes, kernel, bias, dropout, stem, channels)
