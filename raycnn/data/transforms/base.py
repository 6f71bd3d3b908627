"""The interface of transforms, the types of their options, and random boxes.

B images of C channels, H x W pixels.
"""

import math
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from raycnn.shape import Shape


class Transform:
    """Base class of the entries of `data.transforms`."""

    numbers = 0
    """The number of random numbers per image."""

    def shape(self, shape: Shape) -> Shape:
        """Return the shape of an image after this transform.

        Raises SpecError if the transform cannot be applied to an image of shape `shape`.
        """
        return shape

    def evaluation(self) -> "Transform | None":
        """Return the transform to use in evaluation: itself, or None to leave a random one out."""
        return None if self.numbers else self


class ImageTransform(Transform):
    """Base class of transforms that treat every image independently."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return (B, C, H', W') uint8 of (B, C, H, W) uint8 and (B, self.numbers) in [0, 1)."""
        raise NotImplementedError


def _height_and_width(size: Any) -> Any:
    if isinstance(size, int):
        return [size, size]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError("must be a number of pixels, or [height, width]")
    return size


def _ordered(pair: list[float]) -> list[float]:
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ValueError("must be two numbers, the least first")
    return pair


PAIR = {"minItems": 2, "maxItems": 2}  # for the JSON schema; the checks above give better messages
Side = Annotated[int, Field(gt=0, le=4096)]
Sides = Annotated[list[Side], Field(json_schema_extra=PAIR)]
Size = Annotated[Sides, BeforeValidator(_height_and_width, json_schema_input_type=Side | Sides)]
"""[height, width]; one number is both."""
Scale = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]],
    AfterValidator(_ordered),
    Field(json_schema_extra=PAIR),
]
"""Least and largest share of an image's area."""
Ratio = Annotated[
    list[Annotated[float, Field(ge=0.01, le=100)]],
    AfterValidator(_ordered),
    Field(json_schema_extra=PAIR),
]
"""Least and largest width over height."""

Box = tuple[Tensor, Tensor, Tensor, Tensor]
"""Top, left, height and width in whole pixels, each (B,) float32."""


def sample_box(
    numbers: Tensor, height: int, width: int, scale: list[float], ratio: list[float]
) -> Box:
    """Return a random box per image, from numbers (B, 4): area, ratio, top and left.

    The area and the logarithm of the ratio are uniform, as in torchvision. Where a box does not fit
    into the image, torchvision samples again; here it shrinks, at the same ratio, until it fits, so
    that every image takes the same number of random numbers.
    """
    area, aspect, top, left = numbers.unbind(1)
    least, most = (math.log(bound) for bound in ratio)
    aspect = torch.exp(least + aspect * (most - least))
    area = (scale[0] + area * (scale[1] - scale[0])) * (height * width)
    area = torch.minimum(area, torch.minimum(width**2 / aspect, height**2 * aspect))
    high = (area / aspect).sqrt().round().clamp(1, height)
    wide = (area * aspect).sqrt().round().clamp(1, width)
    return (top * (height - high + 1)).floor(), (left * (width - wide + 1)).floor(), high, wide


def inside(box: Box, height: int, width: int) -> Tensor:
    """Return the mask (B, 1, H, W) of the pixels inside each image's box."""
    top, left, high, wide = (side[:, None] for side in box)
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    in_rows = (rows >= top) & (rows < top + high)
    in_columns = (columns >= left) & (columns < left + wide)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
