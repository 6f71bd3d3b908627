"""ResNet-9: "How to train your ResNet", Page 2018 (github.com/davidcpage/cifar10-fast, dawn.py).

A network that learns CIFAR-10 fast: two residuals, and logits scaled by 1/8. Its initial weights
are torch's, as there. B images, C channels, K classes; the sizes noted below are for 32 x 32 images
and 64 channels.
"""

from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, Channels, width
from raycnn.shape import Shape

LOGIT_SCALE = 0.125


def same_conv(c: int, out: int) -> nn.Sequential:
    """Return a 3 x 3 convolution of the same output size, batch norm and ReLU."""
    conv = nn.Conv2d(c, out, 3, padding=1, bias=False)
    return nn.Sequential(conv, BatchNorm(out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions, whose output is added to their input."""

    def __init__(self, c: int):
        super().__init__()
        self.conv1, self.conv2 = same_conv(c, c), same_conv(c, c)

    def forward(self, x: Tensor) -> Tensor:  # (B, c, H, W) -> (B, c, H, W)
        return x + self.conv2(self.conv1(x))


class ResNet9(nn.Module):
    """ResNet-9: the first convolution has `channels` channels, the last eight times as many."""

    def __init__(self, shape: Shape, classes: int, channels: int):
        super().__init__()
        self.prep = same_conv(shape.channels, channels)
        self.layer1 = nn.Sequential(same_conv(channels, 2 * channels), nn.MaxPool2d(2))
        self.residual1 = Residual(2 * channels)
        self.layer2 = nn.Sequential(same_conv(2 * channels, 4 * channels), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(same_conv(4 * channels, 8 * channels), nn.MaxPool2d(2))
        self.residual3 = Residual(8 * channels)
        self.fc = nn.Linear(8 * channels, classes, bias=False)
        width(nn.Sequential(self.prep, self.layer1, self.layer2, self.layer3), shape)

    def forward(self, x: Tensor) -> Tensor:     # (B,   C, 32, 32)
        x = self.prep(x)                        # (B,  64, 32, 32)
        x = self.residual1(self.layer1(x))      # (B, 128, 16, 16)
        x = self.layer2(x)                      # (B, 256,  8,  8)
        x = self.residual3(self.layer3(x))      # (B, 512,  4,  4)
        x = x.amax((2, 3))                      # (B, 512)
        return self.fc(x) * LOGIT_SCALE         # (B, K)


def resnet9(shape: Shape, classes: int, *, channels: Channels = 64) -> nn.Module:
    """Return a ResNet-9 whose first convolution has `channels` output channels."""
    return ResNet9(shape, classes, channels)
