"""GoogLeNet: "Going Deeper with Convolutions", Szegedy et al. 2014 (arXiv:1409.4842), table 1.

Departures from the paper: batch norm after every convolution, which makes the auxiliary heads
unnecessary. State-dict keys are torchvision's; torchvision has 3 x 3 kernels where the paper has
5 x 5 (`kernel: 3`). B images, C channels, K classes; the sizes below are for 224 x 224 images.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, is_small, width
from raycnn.models.dropout import Dropout
from raycnn.shape import Shape

# Output channels of 1x1, (3x3 reduce, 3x3), (5x5 reduce, 5x5) and the pool projection.
InceptionWidths = tuple[int, tuple[int, int], tuple[int, int], int]
INCEPTION: dict[str, InceptionWidths] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


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

    def __init__(self, c: int, row: InceptionWidths, kernel: int, bias: bool):
        super().__init__()
        one, three, five, pool = row
        self.branch1 = Conv(c, one, 1, bias)
        self.branch2 = nn.Sequential(Conv(c, three[0], 1, bias), Conv(*three, 3, bias))
        self.branch3 = nn.Sequential(Conv(c, five[0], 1, bias), Conv(*five, kernel, bias))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(c, pool, 1, bias))

    def forward(self, x: Tensor) -> Tensor:  # (B, c, H, W) -> (B, one + three + five + pool, H, W)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm and without auxiliary heads."""

    def __init__(
        self, shape: Shape, classes: int, kernel: int, bias: bool, dropout: float, small: bool
    ):
        super().__init__()
        self.conv1 = Conv(shape.channels, 64, 3 if small else 7, bias, 1 if small else 2)
        self.maxpool1 = nn.Identity() if small else halve(3)
        self.conv2, self.conv3 = Conv(64, 64, 1, bias), Conv(64, 192, 3, bias)
        self.maxpool2 = nn.Identity() if small else halve(3)
        self.maxpool3, self.maxpool4 = halve(3), halve(2)
        form = kernel, bias
        self.inception3a = Inception(192, INCEPTION["3a"], *form)
        self.inception3b = Inception(256, INCEPTION["3b"], *form)
        self.inception4a = Inception(480, INCEPTION["4a"], *form)
        self.inception4b = Inception(512, INCEPTION["4b"], *form)
        self.inception4c = Inception(512, INCEPTION["4c"], *form)
        self.inception4d = Inception(512, INCEPTION["4d"], *form)
        self.inception4e = Inception(528, INCEPTION["4e"], *form)
        self.inception5a = Inception(832, INCEPTION["5a"], *form)
        self.inception5b = Inception(832, INCEPTION["5b"], *form)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(1024, classes)
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
    stem: Literal["auto", "large", "small"] = "auto",
) -> nn.Module:
    """Return a GoogLeNet; `stem: small` keeps the resolution of small images.

    `kernel` is the size of the larger kernels; `bias` gives the convolutions biases.
    """
    return GoogLeNet(shape, classes, kernel, bias, dropout, is_small(stem, shape))
