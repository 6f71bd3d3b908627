"""Brightness levels: which value stands for white, and how other ranges become 0 to 255."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.errors import DataError

RANGES = (255, 1023, 4095, 16383, 65535)  # white in 8, 10, 12, 14 and 16 bits
DARK = 32  # where no image is brighter, 255 is hardly what white is


def find_max_value(low: float, high: float, integers: bool) -> float | None:
    """Return the value of white of images whose pixels go from `low` to `high`.

    Fractions end at 1 or 255, integers at 255 or at a power of two less one. None where no range
    fits: negative or not finite numbers, fractions just above 1, integers that stay near 0.
    """
    if not 0 <= low <= high:  # NaN is not, either
        return None
    if not integers:
        return 1 if high <= 1 else 255 if DARK <= high <= 255 else None
    if 0 < high < DARK:
        return None
    return next((end for end in RANGES if high <= end), None)


def scale_to_uint8(pixels: NDArray[Any], max_value: float) -> NDArray[np.uint8]:
    """Return pixels from 0 to `max_value` as 0 to 255. Raises DataError for others.

    Integers of 10 to 16 bits keep their highest 8, as torchvision's `to_dtype` does it.
    """
    if pixels.dtype == np.uint8 and max_value == 255:
        return pixels
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= max_value):
        raise DataError(f"pixels from {low:g} to {high:g}, where 0 to {max_value:g} are expected")
    if pixels.dtype.kind in "iu" and max_value in RANGES:
        return (pixels >> (int(max_value).bit_length() - 8)).astype(np.uint8)
    return np.rint(pixels * (255 / max_value)).astype(np.uint8)
