"""RandAugment and TrivialAugment: torchvision's operations and magnitudes, on whole batches.

An operation is a row of settings of three steps: an affine map of the coordinates, a new value for
each pixel value, and a blend with another image. The whole batch takes each step once, each image
with its own row, so that no step waits for the device. An operation sets only what it changes.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycnn.data.transforms.base import ImageTransform, Transform
from raycnn.data.transforms.color import check_channels, gray, image_mean
from raycnn.errors import SpecError
from raycnn.shape import Shape

Bins = Annotated[int, Field(ge=2, le=1000)]
Augmentation = dict[str, float]

UNCHANGED: Augmentation = {
    # The pixel at (x, y) from the center comes from (xx * x + xy * y + dx, yx * x + yy * y + dy).
    "xx": 1, "xy": 0, "dx": 0, "yx": 0, "yy": 1, "dy": 0,
    # A value becomes scale * value + mean * the image's mean, is rounded down to a multiple of
    # step, and inverted from threshold on.
    "scale": 1, "mean": 0, "step": 1, "threshold": 256, "autocontrast": 0, "equalize": 0,
    # The image becomes color * image + gray * its gray version, or smooth parts of its smooth one.
    "color": 1, "gray": 0, "smooth": 0,
}  # fmt: skip
"""The settings that leave an image as it is."""


class AutoAugment(ImageTransform):
    """Base class: apply `count` random operations of random sign to each image, one by one.

    An operation takes one random number, which chooses a row of the table of `rows`.
    """

    name = ""
    bins: int
    levels: range
    """The magnitudes to choose from, among the bins."""
    shear: float
    degrees: float
    change: float
    """The largest change of the factor of brightness, color, contrast and sharpness."""
    bits: int
    """The largest number of bits that posterizing removes."""

    def __init__(self, count: int):
        self.numbers = count
        self._tables: dict[tuple[torch.device, int, int], Tensor] = {}

    def max_translation(self, side: int) -> float:
        """Return the largest translation along a side, in pixels."""
        raise NotImplementedError

    def shape(self, shape: Shape) -> Shape:
        return check_channels(self.name, shape)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[2:]
        table = self._table(images.device, height, width)
        for number in numbers.unbind(1):
            images = apply(images, table[(number * len(table)).long()])
        return images

    def _table(self, device: torch.device, height: int, width: int) -> Tensor:
        """Return the rows as a tensor, cached per device, since each copy synchronizes."""
        key = device, height, width
        if key not in self._tables:
            rows = [
                list((UNCHANGED | row).values())
                for rows in self.rows(height, width).values()
                for row in rows
            ]
            self._tables[key] = torch.tensor(rows, device=device)
        return self._tables[key]

    def rows(self, height: int, width: int) -> dict[str, list[Augmentation]]:
        """Return the settings of each operation: two for each level, one per sign."""

        def signed(largest: float) -> list[float]:
            steps = torch.linspace(0, largest, self.bins).tolist()
            return [sign * steps[level] for level in self.levels for sign in (1, -1)]

        def unsigned(values: Tensor) -> list[float]:
            return [values.tolist()[level] for level in self.levels for _ in range(2)]

        removed = (torch.arange(self.bins) / ((self.bins - 1) / self.bits)).round()
        shears, factors = signed(self.shear), [1 + change for change in signed(self.change)]
        return {
            "identity": [{}] * len(shears),
            "shear_x": [{"xy": m, "dx": m * height / 2} for m in shears],
            "shear_y": [{"yx": m, "dy": m * width / 2} for m in shears],
            "translate_x": [{"dx": -int(m)} for m in signed(self.max_translation(width))],
            "translate_y": [{"dy": -int(m)} for m in signed(self.max_translation(height))],
            "rotate": [_rotation(math.radians(m)) for m in signed(self.degrees)],
            "brightness": [{"scale": m} for m in factors],
            "color": [{"color": m, "gray": 1 - m} for m in factors],
            "contrast": [{"scale": m, "mean": 1 - m} for m in factors],
            "sharpness": [{"smooth": 1 - m} for m in factors],
            "posterize": [{"step": 2**m} for m in unsigned(removed)],
            "solarize": [{"threshold": 255 * m} for m in unsigned(torch.linspace(1, 0, self.bins))],
            "autocontrast": [{"autocontrast": 1}] * len(shears),
            "equalize": [{"equalize": 1}] * len(shears),
        }


class RandAugment(AutoAugment):
    """Apply operations of one magnitude: Cubuk et al. 2019 (arXiv:1909.13719)."""

    name = "rand_augment"
    shear, degrees, change, bits = 0.3, 30.0, 0.9, 4

    def __init__(self, num_ops: int, magnitude: int, num_magnitude_bins: int):
        super().__init__(num_ops)
        self.bins, self.levels = num_magnitude_bins, range(magnitude, magnitude + 1)

    def max_translation(self, side: int) -> float:
        return 150 / 331 * side


class TrivialAugment(AutoAugment):
    """Apply one operation of any magnitude: Müller and Hutter 2021 (arXiv:2103.10158)."""

    name = "trivial_augment"
    shear, degrees, change, bits = 0.99, 135.0, 0.99, 6

    def __init__(self, num_magnitude_bins: int):
        super().__init__(1)
        self.bins, self.levels = num_magnitude_bins, range(num_magnitude_bins)

    def max_translation(self, side: int) -> float:
        return 32.0


def _rotation(angle: float) -> Augmentation:
    cosine, sine = math.cos(angle), math.sin(angle)
    return {"xx": cosine, "xy": -sine, "yx": sine, "yy": cosine}


def apply(images: Tensor, rows: Tensor) -> Tensor:
    """Apply to each of (B, C, H, W) uint8 the operation of its row of settings."""
    columns = dict(zip(UNCHANGED, rows.T[..., None, None], strict=True))  # each (B, 1, 1)
    images = images.contiguous()
    return _blended(_looked_up(_moved(images, columns), columns), columns)


def _moved(images: Tensor, row: dict[str, Tensor]) -> Tensor:
    """Map the coordinates, to the nearest pixel; what comes from outside is black."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]

    def position(name: str, side: int) -> Tensor:  # from -1 to 1, in torchvision's order of sums
        by_x, by_y, offset = (row[key] / (side / 2) for key in (f"{name}x", f"{name}y", f"d{name}"))
        return x * by_x + y * by_y + offset

    grid = torch.stack([position("x", width), position("y", height)], 3)  # (B, H, W, 2)
    moved = F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return moved.to(torch.uint8)


def _looked_up(images: Tensor, row: dict[str, Tensor]) -> Tensor:
    """Give each pixel the new value of its value."""
    pixels = images.flatten(2).long()
    values = torch.arange(256.0, device=images.device)
    mean = image_mean(gray(images.float()).to(torch.uint8))[..., 0]
    new = (values * row["scale"] + mean * row["mean"]).clamp(0, 255).floor()
    new = (new / row["step"]).floor() * row["step"]
    new = torch.where(new >= row["threshold"], 255 - new, new)  # (B, 1, 256)
    new = torch.where(row["autocontrast"] > 0, _stretched(images, values), new)
    new = torch.where(row["equalize"] > 0, _equalized(pixels), new)  # (B, C, 256)
    return new.to(torch.uint8).gather(2, pixels).view(images.shape)


def _stretched(images: Tensor, values: Tensor) -> Tensor:
    """Return the values (B, C, 256) that stretch each channel from 0 to 255."""
    least = images.amin((2, 3))[..., None].float()
    span = images.amax((2, 3))[..., None] - least
    stretched = ((values - least) / (span * (1 / 255))).clamp(0, 255)
    return torch.where(span > 0, stretched, values)


def _equalized(pixels: Tensor) -> Tensor:
    """Return the values (B, C, 256) that flatten each channel's histogram, as Pillow does."""
    count, channels, size = pixels.shape
    ones = torch.ones((), dtype=torch.int32, device=pixels.device).expand_as(pixels)
    histogram = torch.zeros(count, channels, 256, dtype=torch.int32, device=pixels.device)
    histogram.scatter_add_(2, pixels, ones)
    step = (size - histogram.gather(2, pixels.amax(2, keepdim=True))) // 255
    before = histogram.cumsum(2) - histogram
    values = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, values, torch.arange(256, device=pixels.device)).float()


def _blended(images: Tensor, row: dict[str, Tensor]) -> Tensor:
    """Blend each image with its gray and with its smooth version."""
    share = {name: row[name][..., None] for name in ("color", "gray", "smooth")}
    pixels = images.float()
    mixed = pixels + share["smooth"] * (_smoothed(pixels) - pixels)
    if images.shape[1] == 3:
        mixed = torch.addcmul(mixed * share["color"], gray(pixels).floor(), share["gray"])
    return mixed.clamp(0, 255).to(torch.uint8)


def _smoothed(pixels: Tensor) -> Tensor:
    """Return Pillow's SMOOTH filter of (B, C, H, W); the border stays as it is."""
    if min(pixels.shape[2:]) <= 2:
        return pixels
    smooth, inner = pixels.clone(), pixels[:, :, 1:-1, 1:-1]
    sums = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1)  # exact, unlike a convolution
    smooth[:, :, 1:-1, 1:-1] = ((sums + 4 * inner) / 13).round()
    return smooth


def rand_augment(
    *,
    num_ops: Annotated[int, Field(ge=1, le=16)] = 2,
    magnitude: Annotated[int, Field(ge=0)] = 9,
    num_magnitude_bins: Bins = 31,
) -> Transform:
    if magnitude >= num_magnitude_bins:
        raise SpecError(
            f"{magnitude} is not below num_magnitude_bins {num_magnitude_bins}",
            "data.transforms.magnitude",
        )
    return RandAugment(num_ops, magnitude, num_magnitude_bins)


def trivial_augment(*, num_magnitude_bins: Bins = 31) -> Transform:
    return TrivialAugment(num_magnitude_bins)
