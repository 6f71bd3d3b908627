"""What is done to a batch of images, whole, on the device.

Every image's randomness is the row of numbers that `seeds.uniform` gives it for (seed, epoch,
sample), so it does not matter which worker, or which batch, an image is in.
"""

from collections.abc import Sequence
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycnn.catalogue import Catalogue
from raycnn.device import KINDS
from raycnn.shape import Shape
from raycnn.spec import Choice


class Transform(Protocol):
    numbers: int
    """How many random numbers each image needs; with none it is done in evaluation too."""

    def shape(self, shape: Shape) -> Shape: ...

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """(B, C, H, W) uint8 and (B, self.numbers) in [0, 1) to (B, C, H', W') uint8."""


class Resize:
    """To a square, bilinear, antialiased when it shrinks."""

    numbers = 0

    def __init__(self, size: int):
        self.size = size

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.channels, self.size, self.size)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        size = (self.size, self.size)
        resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return resized.round_().clamp_(0, 255).to(torch.uint8)


class PadCrop:
    """Cut an image of the same size out of one with a black border of `padding` pixels."""

    numbers = 2

    def __init__(self, padding: int):
        self.padding = padding

    def shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        p = self.padding
        top, left = (numbers * (2 * p + 1)).long().unbind(1)
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, p, p, p, p)).contiguous()
        rows, pixels, columns, depth = padded.stride()
        windows = padded.as_strided(  # every crop of every image, without copying one
            (count, 2 * p + 1, 2 * p + 1, height, width, channels),
            (rows, pixels, columns, pixels, columns, depth),
        )
        picked = torch.arange(count, device=images.device)
        return windows[picked, top, left].permute(0, 3, 1, 2)


class Flip:
    """Left to right, every second image."""

    numbers = 1

    def shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where((numbers < 0.5)[..., None, None], images.flip(3), images)


def resize(*, size: Annotated[int, Field(gt=0, le=4096)]) -> Transform:
    return Resize(size)


def pad_crop(*, padding: Annotated[int, Field(gt=0, le=512)]) -> Transform:
    return PadCrop(padding)


def flip() -> Transform:
    return Flip()


TRANSFORMS: Catalogue[Transform] = Catalogue(
    "transform", "data.transforms", {"flip": flip, "pad_crop": pad_crop, "resize": resize}
)


class Pipeline:
    """The transforms of a job and its normalisation, for training or for evaluation."""

    def __init__(self, transforms: Sequence[Transform], mean: list[float], std: list[float]):
        self.transforms, self.mean, self.std = transforms, mean, std

    def evaluation(self) -> "Pipeline":
        still = [transform for transform in self.transforms if not transform.numbers]
        return Pipeline(still, self.mean, self.std)

    @property
    def numbers(self) -> int:
        return sum(transform.numbers for transform in self.transforms)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """(B, C, H, W) uint8 and (B, self.numbers) to (B, C, H', W') float32, normalised."""
        start = 0
        for transform in self.transforms:
            stop = start + transform.numbers
            images = transform(images, numbers[:, start:stop])
            start = stop
        return self._normalise(images)

    def _normalise(self, images: Tensor) -> Tensor:
        layout = KINDS[images.device.type].layout
        mean, std = (
            torch.tensor(values, device=images.device).mul_(255).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        # Into a new tensor, since the strides of one with a single channel leave its layout open,
        # and a convolution may guess the slower one.
        floats = torch.empty(images.shape, device=images.device, memory_format=layout)
        return torch.sub(images, mean, out=floats).div_(std)


def shape_after(choices: Sequence[Choice], shape: Shape) -> Shape:
    """The shape a network sees."""
    for choice in choices:
        shape = TRANSFORMS.build(choice).shape(shape)
    return shape
