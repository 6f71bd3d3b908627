"""Mix-up and CutMix: mix a normalized image and its label with the next of its global batch.

B images of C channels and H x W pixels, and one more: the partner of the last.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from raycnn.data.transforms.base import Transform, inside

Alpha = Annotated[float, Field(ge=0.01, le=100)]


class Mix(Transform):
    """Base class of transforms that mix pairs of images; the weight follows Beta(alpha, alpha)."""

    def __init__(self, alpha: float):
        self.alpha = alpha

    def weights(self, numbers: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the weights of an image's own pixels (B, 1, H or 1, W or 1) and own label (B,)."""
        raise NotImplementedError


class Mixup(Mix):
    """Blend two images by weight: Zhang et al. 2017 (arXiv:1710.09412)."""

    numbers = 1

    def weights(self, numbers: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        return numbers[..., None, None], numbers[:, 0]


class Cutmix(Mix):
    """Paste a box of the other image into the first: Yun et al. 2019 (arXiv:1905.04899).

    The box has the image's aspect ratio and a uniformly random center. A label's weight is the
    visible share of its image, also where the box is clipped at the border.
    """

    numbers = 3

    def weights(self, numbers: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        weight, y, x = numbers.unbind(1)
        side = (1 - weight).sqrt() / 2
        top, bottom = _span(y, side, height)
        left, right = _span(x, side, width)
        box = top, left, bottom - top, right - left
        cut = (bottom - top) * (right - left) / (height * width)
        return (~inside(box, height, width)).float(), 1 - cut


def _span(center: Tensor, half: Tensor, length: int) -> tuple[Tensor, Tensor]:
    middle, extent = (center * length).floor(), (half * length).floor()
    return (middle - extent).clamp(min=0), (middle + extent).clamp(max=length)


def count(mixes: Sequence[Mix]) -> int:
    """Return the number of random numbers per image, of which the first chooses the mix."""
    return 1 + sum(mix.numbers for mix in mixes) if mixes else 0


def _columns(mixes: Sequence[Mix]) -> Iterator[tuple[Mix, slice]]:
    """Yield each mix with the columns of its random numbers; column 0 chooses the mix."""
    start = 1
    for mix in mixes:
        yield mix, slice(start, start + mix.numbers)
        start += mix.numbers


def to_beta(mixes: Sequence[Mix], numbers: NDArray[np.float32]) -> None:
    """Transform the weight columns of uniform (B, count(mixes)) to Beta(alpha, alpha), in place."""
    from scipy.special import betaincinv  # slow to import

    for mix, columns in _columns(mixes):
        uniform = numbers[:, columns.start].astype(np.float64)
        numbers[:, columns.start] = betaincinv(mix.alpha, mix.alpha, uniform)


def mixed(mixes: Sequence[Mix], images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each of (B + 1, C, H, W) with the next; return (B, C, H, W) and own-label weights (B,).

    Overwrites `images`. The last row of `numbers`, (B + 1, count(mixes)), is not used.
    """
    height, width = images.shape[2:]
    numbers = numbers[:-1]
    chosen = (numbers[:, 0] * len(mixes)).long()
    pixel_weights = torch.zeros_like(numbers[:, :1, None, None])
    label_weights = torch.zeros_like(numbers[:, 0])
    for index, (mix, columns) in enumerate(_columns(mixes)):
        pixels, label = mix.weights(numbers[:, columns], height, width)
        pixel_weights = torch.where((chosen == index)[:, None, None, None], pixels, pixel_weights)
        label_weights = torch.where(chosen == index, label, label_weights)
    partners = images[1:] * (1 - pixel_weights)
    return images[:-1].mul_(pixel_weights).add_(partners), label_weights


def mixup(*, alpha: Alpha = 0.2) -> Transform:
    return Mixup(alpha)


def cutmix(*, alpha: Alpha = 1.0) -> Transform:
    return Cutmix(alpha)
