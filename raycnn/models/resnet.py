"""ResNet: "Deep Residual Learning for Image Recognition", He et al. 2015
(arXiv:1512.03385), table 1.

State-dict keys are torchvision's, and as there a bottleneck strides in its 3 x 3 convolution.
`shortcut: plain, bias: true` is the form common in tutorials. B images, C channels, K classes;
the sizes noted below are for 224 x 224 images and two-convolution blocks.
"""

from functools import partial
from typing import Literal

from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, init_weights, is_small
from raycnn.shape import Shape


class Block(nn.Module):
    """A residual block: input plus residual, then ReLU.

    Where the shapes differ, the input goes through a 1 x 1 convolution first.
    """

    expansion: int

    def __init__(self, c: int, out: int, stride: int, plain: bool, bias: bool):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or c != out * self.expansion:
            layers: list[nn.Module] = [nn.Conv2d(c, out * self.expansion, 1, stride, bias=bias)]
            if not plain:
                layers.append(BatchNorm(out * self.expansion))
            self.downsample = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # (B, c, H, W) -> (B, out * expansion, H', W')
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.residual(x) + shortcut)

    def residual(self, x: Tensor) -> Tensor:
        """Return the residual, which is added to the shortcut."""
        raise NotImplementedError


class Basic(Block):
    """A residual block of two 3 x 3 convolutions."""

    expansion = 1

    def __init__(self, c: int, out: int, stride: int, plain: bool, bias: bool):
        super().__init__(c, out, stride, plain, bias)
        self.conv1, self.bn1 = nn.Conv2d(c, out, 3, stride, 1, bias=bias), BatchNorm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=bias), BatchNorm(out)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """A residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions, with four times the channels."""

    expansion = 4

    def __init__(self, c: int, out: int, stride: int, plain: bool, bias: bool):
        super().__init__(c, out, stride, plain, bias)
        wide = out * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(c, out, 1, bias=bias), BatchNorm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, stride, 1, bias=bias), BatchNorm(out)
        self.conv3, self.bn3 = nn.Conv2d(out, wide, 1, bias=bias), BatchNorm(wide)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


# Block type and number of blocks in each of the four stages.
DEPTHS: dict[int, tuple[type[Block], tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def stage(
    kind: type[Block], c: int, out: int, count: int, stride: int, plain: bool, bias: bool
) -> nn.Sequential:
    """Return `count` blocks, the first of which may change channels and resolution."""
    first = kind(c, out, stride, plain, bias)
    others = (kind(out * kind.expansion, out, 1, plain, bias) for _ in range(count - 1))
    return nn.Sequential(first, *others)


class ResNet(nn.Module):
    """ResNet of one of the depths in DEPTHS."""

    def __init__(
        self, shape: Shape, classes: int, depth: int, plain: bool, bias: bool, small: bool
    ):
        super().__init__()
        first = (3, 1, 1) if small else (7, 2, 3)  # small: keeps 32 x 32 images at full size
        self.conv1, self.bn1 = nn.Conv2d(shape.channels, 64, *first, bias=bias), BatchNorm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        kind, depths = DEPTHS[depth]
        wide = kind.expansion
        self.layer1 = stage(kind, 64, 64, depths[0], 1, plain, bias)
        self.layer2 = stage(kind, 64 * wide, 128, depths[1], 2, plain, bias)
        self.layer3 = stage(kind, 128 * wide, 256, depths[2], 2, plain, bias)
        self.layer4 = stage(kind, 256 * wide, 512, depths[3], 2, plain, bias)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512 * wide, classes)

    def forward(self, x: Tensor) -> Tensor:     # (B,   C, 224, 224)
        x = self.relu(self.bn1(self.conv1(x)))  # (B,  64, 112, 112)
        x = self.maxpool(x)                     # (B,  64,  56,  56)
        x = self.layer1(x)                      # (B,  64,  56,  56)
        x = self.layer2(x)                      # (B, 128,  28,  28)
        x = self.layer3(x)                      # (B, 256,  14,  14)
        x = self.layer4(x)                      # (B, 512,   7,   7)
        x = self.flatten(self.avgpool(x))       # (B, 512)
        return self.fc(x)                       # (B, K)


def resnet(
    depth: int,
    shape: Shape,
    classes: int,
    *,
    shortcut: Literal["projection", "plain"] = "projection",
    bias: bool = False,
    stem: Literal["auto", "large", "small"] = "auto",
) -> nn.Module:
    """Return a ResNet; `stem: small` keeps the resolution of small images.

    `shortcut: plain` has no batch norm in the shortcuts; `bias` gives the convolutions biases.
    """
    small = is_small(stem, shape)
    model = ResNet(shape, classes, depth, shortcut == "plain", bias, small)
    init_weights(model)
    return model


resnet18 = partial(resnet, 18)
resnet34 = partial(resnet, 34)
resnet50 = partial(resnet, 50)
resnet101 = partial(resnet, 101)
resnet152 = partial(resnet, 152)
