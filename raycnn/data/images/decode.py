"""Pictures: from a file, or its bytes, to pixels of one shape, and many of them at once.

Training and prediction both decode here, so what is predicted is what was trained on.
"""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from raycnn.data.images.levels import DARK, find_max_value, scale_to_uint8
from raycnn.errors import DataError
from raycnn.shape import Shape

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Named = tuple[str, Path | str | bytes | None]
"""What to call a picture, and its file or its bytes, if it has any."""
Fit = Literal["crop", "stretch"]
Mode = Literal["rgb", "grey"]
Side = Annotated[int, Field(gt=0, le=4096)]
Size = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
"""Of a square, or [height, width]."""
MaxValue = Annotated[float, Field(gt=0, le=2**32)]
"""The value of white, where pixels are not 0 to 255."""

FIT: Fit = "crop"
CHANNELS = {"rgb": 3, "grey": 1}
SAMPLE = 256  # pictures that tell what all are like
DEEP_SAMPLE = 32  # of those, pictures of more than 8 bits that are decoded to see their range
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
# Not all that Pillow knows: some of its formats start other programs, or are no pictures.
KNOWN = ["JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "TGA"]
ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind in KNOWN}
FORMATS = [kind for kind in KNOWN if kind in Image.OPEN]

# For good, since threads share the filters: a picture of more pixels than Pillow trusts is refused.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class BadImage(DataError):
    """An image that cannot be read, named: `data.max_bad` of them may be left out."""


@dataclass(frozen=True)
class ImageFormat:
    """What every picture is brought to."""

    shape: Shape
    fit: Fit | None
    """crop: scaled until it covers the shape, the middle kept. None: it has the size already."""
    max_value: float | None = None
    """White in pictures of more than 8 bits; None: judged by each picture alone."""


class Decoded(NamedTuple):
    pixels: Pixels
    """(H, W, C)"""
    conversions: tuple[str, ...]
    """What was lost or made up on the way, for people."""


class Header(NamedTuple):
    """What a picture is like, before it is decoded."""

    name: str
    shape: Shape
    """Turned upright."""
    levels: tuple[float, float, bool] | None
    """Least and greatest pixel, and whether they are integers, where it has more than 8 bits."""


def find_image_format(
    size: Size | None,
    fit: Fit,
    mode: Mode | None,
    max_value: float | None,
    pictures: Iterable[Named],
) -> ImageFormat:
    """Return what the options ask for; what they leave open, a sample of the pictures decides.

    One color picture makes all color. Raises BadImage when none can be read, and DataError when
    the sizes differ and no `size` was given, or when no range fits the pixels.
    """
    headers = _read_headers(pictures)
    channels = CHANNELS[mode] if mode else max(header.shape.channels for header in headers)
    height, width = [size, size] if isinstance(size, int) else size or _common_size(headers)
    white = max_value or _common_max_value(headers)
    return ImageFormat(Shape(channels, height, width), fit if size else None, white)


def _read_headers(pictures: Iterable[Named]) -> list[Header]:
    headers: list[Header] = []
    fault = BadImage("there are no images")
    deep = 0
    for picture in pictures:
        try:
            headers.append(read_header(picture, levels=deep < DEEP_SAMPLE))
            deep += headers[-1].levels is not None
        except BadImage as error:
            fault = error
    if not headers:
        raise fault
    return headers


def _common_size(headers: Sequence[Header]) -> tuple[int, int]:
    sizes = Counter((header.shape.height, header.shape.width) for header in headers)
    (height, width), _ = sizes.most_common(1)[0]
    for header in headers:
        _, high, wide = header.shape
        if (high, wide) != (height, width):
            raise DataError(
                f"{header.name} is {wide}x{high}, not {width}x{height} like others "
                f"({len(sizes)} sizes among {len(headers)} pictures): `data.size` brings all to one"
            )
    return height, width


def _common_max_value(headers: Sequence[Header]) -> float | None:
    for header in headers:
        if header.levels and header.shape.channels == 3 and header.levels[1] < 256 * DARK:
            raise DataError(
                f"{header.name} has 16 bits a channel and uses the lower ones alone: save it with 8"
            )
    deep = [header for header in headers if header.levels and header.shape.channels == 1]
    if not deep:
        return None
    low = min(header.levels[0] for header in deep if header.levels)
    high = max(header.levels[1] for header in deep if header.levels)
    integers = all(header.levels[2] for header in deep if header.levels)
    white = find_max_value(low, high, integers)
    if not white:
        raise DataError(
            f"{deep[0].name}: {len(deep)} pictures of more than 8 bits have pixels from {low:g} to "
            f"{high:g}: which value is white is not clear, and `data.max_value` tells it"
        )
    return white


def read_header(picture: Named, levels: bool = True) -> Header:
    """Return what a picture is like. Raises BadImage when it cannot be read."""
    name, origin = picture
    try:
        with _open(origin) as opened:
            deep = levels and (opened.mode[0] in "IF" or _is_deep_color(opened))
            turned = opened.getexif().get(0x0112, 1) >= 5  # on its side
            width, height = reversed(opened.size) if turned else opened.size
            shape = Shape(1 if opened.mode in GREY else 3, height, width)
            pixels = np.asarray(opened) if deep else None
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        raise _bad(name, error) from None
    if pixels is None:
        return Header(name, shape, None)
    if shape.channels == 3:  # Pillow gives the upper half of 16 bits
        return Header(name, shape, (0, int(pixels.max()) * 256 + 255, True))
    return Header(name, shape, (pixels.min(), pixels.max(), pixels.dtype.kind in "iu"))


def _is_deep_color(image: Image.Image) -> bool:
    """Whether a color picture has 16 bits a channel."""
    return image.mode in ("RGB", "RGBA") and any(
        ";16" in str(tile[-1]) for tile in getattr(image, "tile", ())
    )


def decode(picture: Named, form: ImageFormat) -> Decoded:
    """Return a picture in a format, upright as its EXIF says.

    Raises BadImage when it cannot be read, DataError when it has another size and may not be fit.
    """
    name, origin = picture
    channels, height, width = form.shape
    if channels not in MODES:
        raise DataError(f"{name}: a network of {channels} channels takes no pictures")
    try:
        with _open(origin) as opened:
            if form.fit:  # a large JPEG is decoded at 1/2, 1/4 or 1/8, still with pixels to spare
                opened.draft(None, (2 * max(height, width),) * 2)
            conversions = _conversions(opened, channels)
            ImageOps.exif_transpose(opened, in_place=True)
            image = _eight_bits(opened, form.max_value).convert(MODES[channels])
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        raise _bad(name, error) from None
    if image.size != (width, height):
        if not form.fit:
            found = f"{image.width}x{image.height}"
            raise DataError(
                f"{name} is {found}, not {width}x{height}: `data.size` brings all to one"
            )
        box = _middle(image.size, (width, height)) if form.fit == "crop" else None
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return Decoded(np.array(image).reshape(height, width, channels), conversions)


def _conversions(image: Image.Image, channels: int) -> tuple[str, ...]:
    """Name what a picture loses, or what is made up for it."""
    grey = image.mode in GREY
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    animated = image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(
        image, "is_animated", False
    )
    found = {
        "grey pictures made color": grey and channels > 1,
        "color pictures made grey (`data.mode: rgb` keeps the color)": not grey and channels == 1,
        "pictures with an alpha channel, which is dropped": has_alpha and channels < 4,
        f"{image.mode} pictures made RGB": image.mode in ("CMYK", "YCbCr", "LAB", "HSV"),
        "pictures of several frames, of which the first is taken": animated,
    }
    return tuple(text for text, holds in found.items() if holds)


def decode_all(pictures: Sequence[Named], form: ImageFormat) -> list[Decoded | BadImage]:
    """Decode pictures, in as many threads as this process computes with.

    A picture that cannot be read is returned as what is wrong with it.
    """
    threads = min(torch.get_num_threads(), len(pictures))
    if threads < 2:
        return _decode_each(pictures, form)
    size = -(-len(pictures) // threads)
    shares = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    with ThreadPoolExecutor(threads, "decoder") as pool:
        return [image for done in pool.map(_decode_each, shares, repeat(form)) for image in done]


def decode_batch(pictures: Sequence[Named], form: ImageFormat) -> list[Pixels | BadImage]:
    """Return the pixels (H, W, C) of each picture, or what is wrong with it."""
    decoded = decode_all(pictures, form)
    return [image if isinstance(image, BadImage) else image.pixels for image in decoded]


class Pictures:
    """Images decoded whenever they are asked for; `find` gives the pictures of rows."""

    def __init__(self, count: int, find: Callable[[Rows], Sequence[Named]], form: ImageFormat):
        self.count, self.find, self.form = count, find, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Rows) -> Pixels:
        """(B, H, W, C). Raises BadImage for the first that cannot be read."""
        channels, height, width = self.form.shape
        images = np.empty((len(rows), height, width, channels), np.uint8)
        for index, image in enumerate(self.decode(rows)):
            if isinstance(image, BadImage):
                raise image
            images[index] = image.pixels
        return images

    def decode(self, rows: Rows) -> list[Decoded | BadImage]:
        return decode_all(self.find(rows), self.form)


def _decode_each(pictures: Sequence[Named], form: ImageFormat) -> list[Decoded | BadImage]:
    done: list[Decoded | BadImage] = []
    for picture in pictures:
        try:
            done.append(decode(picture, form))
        except BadImage as error:
            done.append(error)
    return done


def _open(origin: Path | str | bytes | None) -> Image.Image:
    if not origin:
        raise ValueError("there are no bytes")
    return Image.open(io.BytesIO(origin) if isinstance(origin, bytes) else origin, formats=FORMATS)


def _bad(name: str, error: Exception) -> BadImage:
    unknown = "unsupported image format"
    reason = unknown if isinstance(error, UnidentifiedImageError) else error or type(error).__name__
    return BadImage(f"{name} cannot be read as an image: {reason}")


def _eight_bits(image: Image.Image, max_value: float | None) -> Image.Image:
    """Return an image of at most 8 bits a channel. Raises DataError for pixels out of range."""
    if image.mode[0] not in "IF":
        return image.convert("RGBA") if image.mode == "P" else image
    pixels = np.asarray(image)
    white = max_value or find_max_value(pixels.min(), pixels.max(), pixels.dtype.kind in "iu")
    if not white:
        raise DataError(f"pixels from {pixels.min():g} to {pixels.max():g}: `data.max_value`")
    try:
        return Image.fromarray(scale_to_uint8(pixels, white))
    except DataError as error:
        raise DataError(f"{error}: `data.max_value` tells which is white") from None


def _middle(size: tuple[int, int], due: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box of the proportions `due` in the middle of an image."""
    scale = min(size[0] / due[0], size[1] / due[1])
    left, top = ((have - want * scale) / 2 for have, want in zip(size, due, strict=True))
    return max(left, 0), max(top, 0), min(size[0] - left, size[0]), min(size[1] - top, size[1])
