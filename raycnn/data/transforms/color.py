"""Color transforms: jitter and random erasing."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from raycnn.data.transforms.base import ImageTransform, Ratio, Scale, Transform, inside, sample_box
from raycnn.errors import SpecError
from raycnn.shape import Shape

SCALE, RATIO = [0.02, 0.33], [0.3, 3.3]  # defaults of random_erasing, as in torchvision
UpToOne = Annotated[float, Field(ge=0, le=1)]


class ColorJitter(ImageTransform):
    """Jitter brightness, contrast, saturation and hue, as torchvision defines them, in this order.

    The first three are multiplied by a factor in 1 - option to 1 + option; the hue is shifted by up
    to `hue` of a full circle either way. Gray images have neither saturation nor hue.
    """

    numbers = 4

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float):
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def shape(self, shape: Shape) -> Shape:
        return check_channels("color_jitter", shape)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = (2 * numbers - 1).T[..., None, None, None]
        x = images.to(torch.float32, memory_format=torch.contiguous_format)
        if self.brightness:
            x.mul_(1 + brightness * self.brightness).clamp_(0, 255)
        if self.contrast:
            _blend(x, image_mean(gray(x).to(torch.uint8)), 1 + contrast * self.contrast)
        if self.saturation and x.shape[1] == 3:
            _blend(x, gray(x), 1 + saturation * self.saturation)
        if self.hue and x.shape[1] == 3:
            x = _shift_hue(x, hue * self.hue)
        return x.round_().to(torch.uint8)


def check_channels(name: str, shape: Shape) -> Shape:
    """Return the shape. Raises SpecError unless its images are gray or RGB."""
    if shape.channels not in (1, 3):
        raise SpecError(
            f"{name} is for images of 1 or 3 channels, not {shape.channels}", "data.transforms"
        )
    return shape


def _blend(x: Tensor, other: Tensor, share: Tensor) -> None:
    """Blend x with another image in place: share * x + (1 - share) * other; share may exceed 1."""
    x.mul_(share).add_(other * (1 - share)).clamp_(0, 255)


def gray(x: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601 of (B, C, H, W), as (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def image_mean(images: Tensor) -> Tensor:
    """Return the mean (B, C, 1, 1) of (B, C, H, W) uint8, summed exactly in integers."""
    total = images.sum(3, dtype=torch.int32).sum(2)[..., None, None]
    return total / (images.shape[2] * images.shape[3])


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of (B, 3, H, W) by `turns` circles, through HSV and back.

    At hue h, in sixths of a circle, red, green, blue are value - chroma * f(h + 3, h + 1, h - 1),
    where f falls from 1 to 0 as its argument goes from 1 to 2 away from the next multiple of 6.
    """
    red, green, blue = x.split(1, 1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    span = chroma.clamp(min=1e-6)  # gray pixels: 0 / 1e-6, and no chroma
    hue = torch.where(
        value == red,
        (green - blue) / span,
        torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    away = (hue + 6 * turns) + torch.arange(3, -3, -2, device=x.device).view(1, 3, 1, 1)
    away.sub_(away.div(6).round_().mul_(6)).abs_()
    return value - away.neg_().add_(2).clamp_(0, 1).mul_(chroma)


class RandomErasing(ImageTransform):
    """Fill a random box with the image's own mean: Zhong et al. 2017 (arXiv:1708.04896).

    The paper fills it with random pixels; the mean needs no random numbers and, unlike black, is
    close to zero after normalization. `ratio` is width over height.
    """

    numbers = 5

    def __init__(self, p: float, scale: list[float], ratio: list[float]):
        self.p, self.scale, self.ratio = p, scale, ratio

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[2:]
        box = sample_box(numbers[:, 1:], height, width, self.scale, self.ratio)
        erased = inside(box, height, width) & (numbers[:, 0] < self.p)[:, None, None, None]
        images = images.contiguous()
        return images * ~erased + image_mean(images).round().to(torch.uint8) * erased


def color_jitter(
    *,
    brightness: UpToOne = 0.0,
    contrast: UpToOne = 0.0,
    saturation: UpToOne = 0.0,
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
) -> Transform:
    if not any((brightness, contrast, saturation, hue)):
        raise SpecError(
            "color_jitter needs brightness, contrast, saturation or hue above 0",
            "data.transforms",
        )
    return ColorJitter(brightness, contrast, saturation, hue)


def random_erasing(
    *,
    p: Annotated[float, Field(gt=0, le=1)] = 0.5,
    scale: Scale = SCALE,
    ratio: Ratio = RATIO,
) -> Transform:
    return RandomErasing(p, scale, ratio)
