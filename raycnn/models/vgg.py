"""VGG: "Very Deep Convolutional Networks", Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1.

State-dict keys are torchvision's. Images that give less than 7 x 7 features get a smaller
classifier. B images, C channels, K classes; the sizes noted below are for 224 x 224 images.
"""

from functools import partial
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, Channels, init_weights, width
from raycnn.models.dropout import Dropout
from raycnn.shape import Shape

# Number of 3 x 3 convolutions in each of the five stages: columns A, B, D and E of table 1.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
STAGES = (1, 2, 4, 8, 8)  # channels of each stage, in those of the first
HIDDEN = 64  # outputs of the first two linear layers, in the same


def _features(
    c: int, depths: tuple[int, ...], batch_norm: bool, channels: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for depth, factor in zip(depths, STAGES, strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(c, factor * channels, 3, padding=1))
            c = factor * channels
            if batch_norm:
                layers.append(BatchNorm(c))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """VGG of one of the depths in DEPTHS."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        depth: int,
        batch_norm: bool,
        dropout: float,
        pool_size: int,
        channels: int,
    ):
        super().__init__()
        self.features = _features(shape.channels, DEPTHS[depth], batch_norm, channels)
        width(self.features, shape)  # raises TooSmall: the pool would hide it
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
        self.flatten = nn.Flatten()
        pooled, hidden = STAGES[-1] * channels * pool_size**2, HIDDEN * channels
        self.classifier = nn.Sequential(
            nn.Linear(pooled, hidden), nn.ReLU(inplace=True), Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # (B,   C, 224, 224)
        x = self.features(x)                 # (B, 512,   7,   7)
        x = self.avgpool(x)                  # (B, 512,   7,   7)
        x = self.flatten(x)                  # (B, 25088)
        return self.classifier(x)            # (B, K)


def vgg(
    depth: int,
    shape: Shape,
    classes: int,
    *,
    batch_norm: bool = False,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    pool_size: PositiveInt | None = None,
    channels: Channels = 64,
) -> nn.Module:
    """Return a VGG whose first stage has `channels` channels, the other layers in proportion.

    `pool_size` is the side of the pooled features, by default at most 7.
    """
    side = min(shape.height, shape.width) // 2 ** len(STAGES)
    pool_size = pool_size or max(1, min(7, side))
    model = VGG(shape, classes, depth, batch_norm, dropout, pool_size, channels)
    init_weights(model, linear_std=0.01)
    return model


vgg11 = partial(vgg, 11)
vgg13 = partial(vgg, 13)
vgg16 = partial(vgg, 16)
vgg19 = partial(vgg, 19)
