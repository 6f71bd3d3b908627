"""Decode images from files or bytes to pixels of one shape, one at a time or in parallel.

A picture is an encoded image, as a file or as bytes; an image may also be decoded. Training and
prediction both decode here, so both see the same pixels.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from raycnn.data.images.decoders import Decoders
from raycnn.data.images.levels import DARK, find_max_value, scale_to_uint8
from raycnn.errors import DataError
from raycnn.runtime import device
from raycnn.shape import Shape

T = TypeVar("T")
Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
NamedImage = tuple[str, Path | str | bytes | None]
"""A picture: its display name, and its file or its bytes; None if it has neither."""
Fit = Literal["crop", "stretch"]
Mode = Literal["rgb", "gray", "grey"]
Side = Annotated[int, Field(gt=0, le=4096)]
TargetSize = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
"""The side of a square, or [height, width]."""
MaxValue = Annotated[float, Field(gt=0, le=2**32)]
"""The value of white, if pixels are not 0 to 255."""

FIT: Fit = "crop"
CHANNELS: dict[Mode, int] = {"rgb": 3, "gray": 1, "grey": 1}
SAMPLE = 256  # images sampled to find the common format
MAX_SHARE = 32  # images that a process decodes at once
DEEP_SAMPLE = 32  # images of more than 8 bits among those that are decoded to find their range
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GRAY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
# A subset of Pillow's formats: some others start external programs, or are not images.
ALLOWED = ["JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "TGA"]

# Reject images with more pixels than Pillow's limit. Set once, since threads share the filters.
warnings.simplefilter("error", Image.DecompressionBombWarning)


# For these two Pillow loads all of its plugins: a quarter of a second, which not every use needs.
@cache
def picture_endings() -> frozenset[str]:
    """Return the lower-case endings of the files that are read as images, such as `.png`."""
    endings = Image.registered_extensions().items()
    return frozenset(ending for ending, kind in endings if kind in ALLOWED)


@cache
def _formats() -> list[str]:
    """Return the allowed formats that this build of Pillow reads."""
    Image.init()
    return [kind for kind in ALLOWED if kind in Image.OPEN]


class BadImage(DataError):
    """Raised for an image that cannot be read; `data.max_bad` of them may be left out."""


@dataclass(frozen=True)
class ImageFormat:
    """The common format that every image is decoded to."""

    shape: Shape
    fit: Fit | None
    """crop: scale to cover the shape, then center-crop. stretch: resize. None: no resizing."""
    max_value: float | None = None
    """The value of white in images of more than 8 bits; None: found for each image separately."""


class Decoded(NamedTuple):
    pixels: Pixels
    """(H, W, C)"""
    conversions: tuple[str, ...]
    """Messages for the user about lossy conversions."""


class Header(NamedTuple):
    """The properties of an image before it is decoded."""

    name: str
    shape: Shape
    """The shape after EXIF rotation."""
    levels: tuple[float, float, bool] | None
    """Least and greatest pixel, and whether they are integers, for images of more than 8 bits."""


def find_image_format(
    size: TargetSize | None,
    fit: Fit,
    mode: Mode | None,
    max_value: float | None,
    pictures: Iterable[NamedImage],
) -> ImageFormat:
    """Return the image format that the options give, completed from a sample of the images.

    One color image makes the format color. Raises BadImage when no image can be read, and DataError
    when the sizes differ and no `size` is given, or when no value range fits the pixels.
    """
    headers = _read_headers(pictures)
    channels = CHANNELS[mode] if mode else max(header.shape.channels for header in headers)
    height, width = [size, size] if isinstance(size, int) else size or _common_size(headers)
    max_value = max_value or _common_max_value(headers)
    return ImageFormat(Shape(channels, height, width), fit if size else None, max_value)


def _read_headers(pictures: Iterable[NamedImage]) -> list[Header]:
    headers: list[Header] = []
    last_error = BadImage("there are no images")
    deep_count = 0
    for picture in pictures:
        try:
            headers.append(read_header(picture, levels=deep_count < DEEP_SAMPLE))
            deep_count += headers[-1].levels is not None
        except BadImage as error:
            last_error = error
    if not headers:
        raise last_error
    return headers


def _common_size(headers: Sequence[Header]) -> tuple[int, int]:
    sizes = Counter((header.shape.height, header.shape.width) for header in headers)
    (height, width), _ = sizes.most_common(1)[0]
    for header in headers:
        if header.shape[1:] != (height, width):
            raise DataError(
                f"{header.name} is {header.shape.width}x{header.shape.height}, not "
                f"{width}x{height} like others ({len(sizes)} sizes among {len(headers)} pictures); "
                "set `data.size` to resize all"
            )
    return height, width


def _common_max_value(headers: Sequence[Header]) -> float | None:
    for header in headers:
        if header.levels and header.shape.channels == 3 and header.levels[1] < 256 * DARK:
            raise DataError(
                f"{header.name} has 16 bits per channel but uses only the lower 8; save it with 8"
            )
    deep = [header for header in headers if header.levels and header.shape.channels == 1]
    if not deep:
        return None
    low = min(header.levels[0] for header in deep if header.levels)
    high = max(header.levels[1] for header in deep if header.levels)
    integers = all(header.levels[2] for header in deep if header.levels)
    max_value = find_max_value(low, high, integers)
    if not max_value:
        raise DataError(
            f"{deep[0].name}: {len(deep)} pictures of more than 8 bits have pixels from {low:g} to "
            f"{high:g}: the white level is ambiguous; set `data.max_value`"
        )
    return max_value


def read_header(picture: NamedImage, levels: bool = True) -> Header:
    """Return the properties of an image. Raises BadImage when it cannot be read."""
    name, origin = picture
    try:
        with _open(origin) as opened:
            deep = levels and (opened.mode[0] in "IF" or _is_deep_color(opened))
            turned = opened.getexif().get(0x0112, 1) >= 5  # rotated by 90 degrees
            width, height = reversed(opened.size) if turned else opened.size
            shape = Shape(1 if opened.mode in GRAY else 3, height, width)
            pixels = np.asarray(opened) if deep else None
    except Exception as error:  # on corrupt bytes Pillow may raise anything
        raise _bad(name, error) from None
    if pixels is None:
        return Header(name, shape, None)
    if shape.channels == 3:  # Pillow gives the upper 8 of 16 bits
        return Header(name, shape, (0, int(pixels.max()) * 256 + 255, True))
    return Header(name, shape, (pixels.min(), pixels.max(), pixels.dtype.kind in "iu"))


def _is_deep_color(image: Image.Image) -> bool:
    """Return whether a color image has 16 bits per channel."""
    return image.mode in ("RGB", "RGBA") and any(
        ";16" in str(tile[-1]) for tile in getattr(image, "tile", ())
    )


def decode(picture: NamedImage, image_format: ImageFormat) -> Decoded:
    """Decode an image to a format, rotated as its EXIF data says.

    Raises BadImage if it cannot be read, and DataError if its size differs from a format without
    resizing.
    """
    name, origin = picture
    channels, height, width = image_format.shape
    if channels not in MODES:
        raise DataError(
            f"{name}: pictures have 1, 3 or 4 channels, and the network takes {channels}"
        )
    try:
        with _open(origin) as opened:
            if image_format.fit:  # decode a large JPEG at 1/2, 1/4 or 1/8 of its size
                opened.draft(None, (2 * max(height, width),) * 2)
            conversions = _conversions(opened, channels)
            ImageOps.exif_transpose(opened, in_place=True)
            image = _eight_bits(opened, image_format.max_value)
            if image.mode == MODES[channels]:
                image.load()  # `convert` would copy it
            else:
                image = image.convert(MODES[channels])
    except Exception as error:  # on corrupt bytes Pillow may raise anything
        raise _bad(name, error) from None
    if image.size != (width, height):
        if not image_format.fit:
            raise DataError(
                f"{name} is {image.width}x{image.height}, not {width}x{height}; set `data.size` to "
                "resize all"
            )
        box = _center_box(image.size, (width, height)) if image_format.fit == "crop" else None
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return Decoded(np.array(image).reshape(height, width, channels), conversions)


def _conversions(image: Image.Image, channels: int) -> tuple[str, ...]:
    """Return the messages about lossy conversions of an image."""
    gray = image.mode in GRAY
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    animated = image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(
        image, "is_animated", False
    )
    applies = {
        "gray pictures made color": gray and channels > 1,
        "color pictures made gray (`data.mode: rgb` keeps the color)": not gray and channels == 1,
        "pictures with an alpha channel, which is dropped": has_alpha and channels < 4,
        f"{image.mode} pictures made RGB": image.mode in ("CMYK", "YCbCr", "LAB", "HSV"),
        "pictures of several frames, of which only the first is used": animated,
    }
    return tuple(text for text, is_true in applies.items() if is_true)


def decode_all(
    pictures: Sequence[NamedImage], image_format: ImageFormat
) -> list[Decoded | BadImage]:
    """Decode images on all CPUs of this worker.

    An image that cannot be read is returned as its BadImage error.
    """
    shares = _map_shares(_decode_each, pictures, image_format)
    return [image for share in shares for image in share]


def _map_shares(
    function: Callable[[Sequence[NamedImage], ImageFormat], T],
    pictures: Sequence[NamedImage],
    image_format: ImageFormat,
) -> list[T]:
    """Return what a function returns for each share of images, on all CPUs of this worker."""
    processes = device.cpu_threads()
    size = max(1, min(MAX_SHARE, len(pictures) // (2 * processes)))
    # The processes may have been started in another folder.
    located = [(name, _absolute(origin)) for name, origin in pictures]
    shares = [located[start : start + size] for start in range(0, len(pictures), size)]
    return _decoders(os.getpid(), processes).map(
        function, [(share, image_format) for share in shares]
    )


@cache
def _decoders(pid: int, count: int) -> Decoders:
    """Return the processes that decode for process `pid`, which a fork of it must not use."""
    return Decoders(count)


def decode_batch(
    pictures: Sequence[NamedImage], image_format: ImageFormat
) -> list[Pixels | BadImage]:
    """Return the pixels (H, W, C) uint8 of each image, or its BadImage error."""
    decoded = decode_all(pictures, image_format)
    return [image if isinstance(image, BadImage) else image.pixels for image in decoded]


class Pictures:
    """Images decoded on every access; `find` returns the names and files or bytes of rows."""

    def __init__(
        self, count: int, find: Callable[[Rows], Sequence[NamedImage]], image_format: ImageFormat
    ):
        self.count, self.find, self.image_format = count, find, image_format

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Rows) -> Pixels:
        """Return (B, H, W, C) uint8. Raises BadImage for the first image that cannot be read."""
        channels, height, width = self.image_format.shape
        none = np.empty((0, height, width, channels), np.uint8)
        shares = _map_shares(_decode_together, self.find(rows), self.image_format)
        return np.concatenate([none, *shares])

    def decode(self, rows: Rows) -> list[Decoded | BadImage]:
        return decode_all(self.find(rows), self.image_format)


def _decode_together(pictures: Sequence[NamedImage], image_format: ImageFormat) -> Pixels:
    """Return the images in one array (B, H, W, C), which costs less to send than one for each."""
    return np.stack([decode(picture, image_format).pixels for picture in pictures])


def _decode_each(
    pictures: Sequence[NamedImage], image_format: ImageFormat
) -> list[Decoded | BadImage]:
    decoded: list[Decoded | BadImage] = []
    for picture in pictures:
        try:
            decoded.append(decode(picture, image_format))
        except BadImage as error:
            decoded.append(error)
    return decoded


def _open(origin: Path | str | bytes | None) -> Image.Image:
    if not origin:
        raise ValueError("there are no bytes")
    return Image.open(
        io.BytesIO(origin) if isinstance(origin, bytes) else origin, formats=_formats()
    )


def _absolute(origin: Path | str | bytes | None) -> Path | str | bytes | None:
    return os.path.abspath(origin) if origin and not isinstance(origin, bytes) else origin


def _bad(name: str, error: Exception) -> BadImage:
    unknown = "unsupported image format"
    reason = unknown if isinstance(error, UnidentifiedImageError) else error or type(error).__name__
    return BadImage(f"{name} cannot be read as an image: {reason}")


def _eight_bits(image: Image.Image, max_value: float | None) -> Image.Image:
    """Return an image with 8 bits per channel. Raises DataError for pixels out of range."""
    if image.mode[0] not in "IF":
        return image.convert("RGBA") if image.mode == "P" else image
    pixels = np.asarray(image)
    integers = pixels.dtype.kind in "iu"
    max_value = max_value or find_max_value(pixels.min(), pixels.max(), integers)
    if not max_value:
        raise DataError(
            f"pixels from {pixels.min():g} to {pixels.max():g}: the white level is ambiguous; set "
            "`data.max_value`"
        )
    try:
        return Image.fromarray(scale_to_uint8(pixels, max_value))
    except DataError as error:
        raise DataError(f"{error}; set `data.max_value`") from None


def _center_box(
    size: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the largest centered box with the aspect ratio of `target`."""
    scale = min(size[0] / target[0], size[1] / target[1])
    left, top = ((have - want * scale) / 2 for have, want in zip(size, target, strict=True))
    return max(left, 0), max(top, 0), min(size[0] - left, size[0]), min(size[1] - top, size[1])
