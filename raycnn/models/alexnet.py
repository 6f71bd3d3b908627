"""AlexNet: "ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky 2012.

`form: large` is torchvision's, from "One weird trick for parallelizing convolutional neural
networks", Krizhevsky 2014 (arXiv:1404.5997), with the same state-dict keys; `form: small` is for
32 x 32 images. `batch_norm`, which the paper does not have, follows every convolution and replaces
its bias. B images, C channels, K classes.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from raycnn.models.blocks import BatchNorm, width
from raycnn.models.dropout import Dropout
from raycnn.shape import Shape

# (channels, kernel, stride, padding) of a convolution, or (kernel, stride) of a max pool.
ConvOrPool = tuple[int, int, int, int] | tuple[int, int]
SMALL: list[ConvOrPool] = [
    (64, 4, 2, 0), (2, 1), (256, 3, 1, 1), (2, 2),
    (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), (2, 1),
]  # fmt: skip
LARGE: list[ConvOrPool] = [
    (64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2),
    (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), (3, 2),
]  # fmt: skip
SMALL_BELOW = 63  # pixels: the smallest side that the large form accepts


def _features(channels: int, rows: list[ConvOrPool], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for row in rows:
        if len(row) == 2:
            layers.append(nn.MaxPool2d(*row))
            continue
        layers.append(nn.Conv2d(channels, *row, bias=not batch_norm))
        channels = row[0]
        if batch_norm:
            layers.append(BatchNorm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class SmallAlexNet(nn.Module):
    """AlexNet with smaller kernels and strides, for images of about 32 x 32."""

    def __init__(self, shape: Shape, classes: int, dropout: float, batch_norm: bool):
        super().__init__()
        self.features = _features(shape.channels, SMALL, batch_norm)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(width(self.features, shape), 4608), nn.ReLU(inplace=True), Dropout(dropout),
            nn.Linear(4608, 4608), nn.ReLU(inplace=True), Dropout(dropout),
            nn.Linear(4608, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # (B,   C, 32, 32)
        x = self.features(x)                 # (B, 256,  6,  6)
        x = self.flatten(x)                  # (B, 9216)
        return self.classifier(x)            # (B, K)


class AlexNet(nn.Module):
    """AlexNet in torchvision's form, for images of at least 63 x 63."""

    def __init__(self, shape: Shape, classes: int, dropout: float, batch_norm: bool):
        super().__init__()
        self.features = _features(shape.channels, LARGE, batch_norm)
        width(self.features, shape)  # raises TooSmall: the pool would hide it
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            Dropout(dropout), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True),
            Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # (B,   C, 224, 224)
        x = self.features(x)                 # (B, 256,   6,   6)
        x = self.avgpool(x)                  # (B, 256,   6,   6)
        x = self.flatten(x)                  # (B, 9216)
        return self.classifier(x)            # (B, K)


def alexnet(
    shape: Shape,
    classes: int,
    *,
    form: Literal["auto", "small", "large"] = "auto",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    batch_norm: bool = False,
) -> nn.Module:
    """Return an AlexNet; `form: auto` is large for images of at least 63 x 63, else small."""
    small = min(shape.height, shape.width) < SMALL_BELOW if form == "auto" else form == "small"
    return (SmallAlexNet if small else AlexNet)(shape, classes, dropout, batch_norm)
