"""Geometric transforms: crops, resizing, flips."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycnn.data.transforms.base import (
    Box,
    ImageTransform,
    Ratio,
    Scale,
    Size,
    Transform,
    sample_box,
)
from raycnn.errors import SpecError
from raycnn.shape import Shape

Probability = Annotated[float, Field(gt=0, le=1)]
SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]  # defaults of random_resized_crop, as in the paper


class Resize(ImageTransform):
    """Resize to a height and a width: bilinear, antialiased when downscaling."""

    def __init__(self, size: list[int]):
        self.size = size

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.channels, *self.size)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        resized = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        return resized.round_().clamp_(0, 255).to(torch.uint8)


class CenterCrop(ImageTransform):
    """Crop the center of an image."""

    def __init__(self, size: list[int]):
        self.size = size

    def shape(self, shape: Shape) -> Shape:
        height, width = self.size
        if height > shape.height or width > shape.width:
            raise SpecError(
                f"{height} x {width} is not inside images of {shape.height} x {shape.width}",
                "data.transforms.size",
            )
        return Shape(shape.channels, height, width)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = self.size
        top, left = round((images.shape[2] - height) / 2), round((images.shape[3] - width) / 2)
        return images[:, :, top : top + height, left : left + width]


class RandomResizedCrop(ImageTransform):
    """Crop a random box and resize it: Szegedy et al. 2014 (arXiv:1409.4842), section 6.

    Bilinear, and antialiased where a box is larger than `size`. In evaluation the box is the
    largest centered one with the aspect ratio of `size`.
    """

    numbers = 4

    def __init__(self, size: list[int], scale: list[float], ratio: list[float]):
        self.size, self.scale, self.ratio = size, scale, ratio

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.channels, *self.size)

    def evaluation(self) -> Transform:
        return ResizedCenterCrop(self.size)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        box = sample_box(numbers, images.shape[2], images.shape[3], self.scale, self.ratio)
        return resized_boxes(images, box, self.size)


class ResizedCenterCrop(Resize):
    """Crop the largest centered box with the aspect ratio of `size`, and resize it."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        scale = min(have / want for have, want in zip(images.shape[2:], self.size, strict=True))
        box = CenterCrop([round(scale * side) for side in self.size])
        return super().__call__(box(images, numbers), numbers)


class RandomCrop(ImageTransform):
    """Pad an image with `padding` black pixels per side, and crop the original size at random."""

    numbers = 2

    def __init__(self, padding: int):
        self.padding = padding

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        p = self.padding
        top, left = (numbers * (2 * p + 1)).long().unbind(1)
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, p, p, p, p)).contiguous()
        rows, pixels, columns, depth = padded.stride()
        windows = padded.as_strided(  # a view of every crop of every image, without a copy
            (count, 2 * p + 1, 2 * p + 1, height, width, channels),
            (rows, pixels, columns, pixels, columns, depth),
        )
        index = torch.arange(count, device=images.device)
        return windows[index, top, left].permute(0, 3, 1, 2)


class Flip(ImageTransform):
    """Flip an image along a dimension of (B, C, H, W), with probability `p`."""

    numbers = 1

    def __init__(self, dim: int, p: float):
        self.dim, self.p = dim, p

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where((numbers < self.p)[..., None, None], images.flip(self.dim), images)


def resized_boxes(images: Tensor, box: Box, size: list[int]) -> Tensor:
    """Resize a box of each of (B, C, H, W) uint8 to (B, C, *size) uint8, as torch's interpolate.

    Bilinear resizing, with or without antialiasing, is separable: a product with one matrix for the
    columns and one for the rows of each image.
    """
    count, channels, height, width = images.shape
    top, left, high, wide = box
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    columns = _weights(left, wide, width, size[1]).mT  # (B, W, W')
    pixels = torch.bmm(pixels.view(count, channels * height, width), columns)
    rows = _weights(top, high, height, size[0])[:, None]  # (B, 1, H', H)
    pixels = rows @ pixels.view(count, channels, height, size[1])
    return pixels.round_().to(torch.uint8)


def _weights(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Return the interpolation weights (B, target, source) along one side."""
    start, end = start[:, None, None], (start + length)[:, None, None]
    step = (end - start) / target
    pixel = torch.arange(source, device=start.device) + 0.5
    center = start + step * (torch.arange(target, device=start.device) + 0.5)[:, None]
    weights = (1 - (pixel - center).abs() / step.clamp(min=1)).clamp_(min=0)
    weights *= (pixel > start) & (pixel < end)
    return weights / weights.sum(2, keepdim=True)


def resize(*, size: Size) -> Transform:
    return Resize(size)


def center_crop(*, size: Size) -> Transform:
    return CenterCrop(size)


def random_resized_crop(*, size: Size, scale: Scale = SCALE, ratio: Ratio = RATIO) -> Transform:
    return RandomResizedCrop(size, scale, ratio)


def random_crop(*, padding: Annotated[int, Field(gt=0, le=512)]) -> Transform:
    return RandomCrop(padding)


def horizontal_flip(*, p: Probability = 0.5) -> Transform:
    return Flip(3, p)


def vertical_flip(*, p: Probability = 0.5) -> Transform:
    return Flip(2, p)
