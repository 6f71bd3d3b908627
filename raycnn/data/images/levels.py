"""Pixel value ranges: find the value of white, and scale other ranges to 0 to 255."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.errors import DataError

RANGES = (255, 1023, 4095, 16383, 65535)  # white in 8, 10, 12, 14 and 16 bits
DARK = 32  # if no pixel of an image is brighter, white is unlikely to be 255


def find_max_value(low: float, high: float, integers: bool) -> float | None:
    """Return the value of white for images whose pixels range from `low` to `high`.

    White is 1 or 255 for floats, 255 or a power of two minus one for integers. Returns None if
    no range fits: negative or non-finite values, floats just above 1, integers all close to 0.
    """
    if not 0 <= low <= high:  # also false for NaN
        return None
    if not integers:
        return 1 if high <= 1 else 255 if DARK <= high <= 255 else None
    if 0 < high < DARK:
        return None
    return next((end for end in RANGES if high <= end), None)


def scale_to_uint8(pixels: NDArray[Any], max_value: float) -> NDArray[np.uint8]:
    """Return pixels of 0 to `max_value` scaled to uint8; the shape is unchanged.

    Integers of 10 to 16 bits keep their highest 8 bits, as in torchvision's `to_dtype`. Raises
    DataError for values outside 0 to `max_value`.
    """
    if pixels.dtype == np.uint8 and max_value == 255:
        return pixels
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= max_value):
        raise DataError(f"pixels from {low:g} to {high:g}, expected 0 to {max_value:g}")
    if pixels.dtype.kind in "iu" and max_value in RANGES:
        return (pixels >> (int(max_value).bit_length() - 8)).astype(np.uint8)
    return np.rint(pixels * (255 / max_value)).astype(np.uint8)
