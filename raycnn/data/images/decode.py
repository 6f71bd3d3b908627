"""Pictures: from a file, or its bytes, to pixels of one shape, and many of them at once.

Training and prediction both decode here, so what is predicted is what was trained on.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

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

FIT: Fit = "crop"
CHANNELS = {"rgb": 3, "grey": 1}
TRIES = 100  # how many unreadable pictures may come before one that shows its shape
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
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
    convert: bool
    """Whether grey is made colour and colour grey; else a picture of the other kind is refused."""
    remedy: str = ""
    """What can be done about a picture that does not go into the frame."""


def image_format_of(
    size: Size | None, fit: Fit, mode: Mode | None, pictures: Iterable[Named]
) -> ImageFormat:
    """What the options `size`, `fit` and `mode` ask for; what they leave open, the first picture
    that can be read decides for all. Raises BadImage when none can.
    """
    first = Shape(3, 1, 1) if size and mode else _first_shape(pictures)
    channels = CHANNELS[mode] if mode else first.channels
    height, width = [size, size] if isinstance(size, int) else size or first[1:]
    remedy = ": `data.size` and `data.mode` bring all images to one shape"
    shape = Shape(channels, height, width)
    return ImageFormat(shape, fit if size else None, mode is not None, remedy)


def _first_shape(pictures: Iterable[Named]) -> Shape:
    fault = BadImage("there are no images")
    for picture in islice(pictures, TRIES):
        try:
            return shape_of(picture)
        except BadImage as error:
            fault = error
    raise fault


def decode(picture: Named, frame: ImageFormat) -> Pixels:
    """(H, W, C), upright as its EXIF says.

    Raises BadImage when it cannot be read, DataError when it does not go into the frame.
    """
    name, origin = picture
    channels, height, width = frame.shape
    if channels not in MODES:
        raise DataError(f"{name}: a network of {channels} channels looks at no pictures")
    try:
        with _open(origin) as opened:
            if frame.fit:  # a large JPEG is decoded at 1/2, 1/4 or 1/8, still with pixels to spare
                opened.draft(None, (2 * max(height, width),) * 2)
            ImageOps.exif_transpose(opened, in_place=True)
            grey = opened.mode in GREY
            image = _eight_bits(opened).convert(MODES[channels])
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        raise _bad(name, error) from None
    if not frame.convert and grey != (channels == 1):
        now, due = ("grey", "colour") if grey else ("colour", "grey")
        raise DataError(f"{name} is {now}, not {due}{frame.remedy}")
    if image.size != (width, height):
        if not frame.fit:
            found = f"{image.width}x{image.height}"
            raise DataError(f"{name} is {found}, not {width}x{height}{frame.remedy}")
        box = _middle(image.size, (width, height)) if frame.fit == "crop" else None
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.array(image).reshape(height, width, channels)


def shape_of(picture: Named) -> Shape:
    """Of a picture as it is stored, turned upright. Raises BadImage when it cannot be read."""
    name, origin = picture
    try:
        with _open(origin) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            return Shape(1 if opened.mode in GREY else 3, opened.height, opened.width)
    except Exception as error:
        raise _bad(name, error) from None


def decode_batch(pictures: Sequence[Named], frame: ImageFormat) -> list[Pixels | BadImage]:
    """Each decoded, or what is wrong with it, in as many threads as this process computes with."""
    threads = min(torch.get_num_threads(), len(pictures))
    if threads < 2:
        return _attempts(pictures, frame)
    size = -(-len(pictures) // threads)
    shares = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    with ThreadPoolExecutor(threads, "decoder") as pool:
        return [image for done in pool.map(_attempts, shares, repeat(frame)) for image in done]


class Pictures:
    """Images decoded whenever they are asked for; `fetch` gives the pictures of rows."""

    def __init__(self, count: int, fetch: Callable[[Rows], Sequence[Named]], frame: ImageFormat):
        self.count, self.fetch, self.frame = count, fetch, frame

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Rows) -> Pixels:
        """(B, H, W, C). Raises BadImage for the first that cannot be read."""
        channels, height, width = self.frame.shape
        images = np.empty((len(rows), height, width, channels), np.uint8)
        for place, image in enumerate(decode_batch(self.fetch(rows), self.frame)):
            if isinstance(image, BadImage):
                raise image
            images[place] = image
        return images


def _attempts(pictures: Sequence[Named], frame: ImageFormat) -> list[Pixels | BadImage]:
    done: list[Pixels | BadImage] = []
    for picture in pictures:
        try:
            done.append(decode(picture, frame))
        except BadImage as error:
            done.append(error)
    return done


def _open(origin: Path | str | bytes | None) -> Image.Image:
    if not origin:
        raise ValueError("there are no bytes")
    return Image.open(io.BytesIO(origin) if isinstance(origin, bytes) else origin, formats=FORMATS)


def _bad(name: str, error: Exception) -> BadImage:
    unknown = "it is no picture, or of a kind that is not read"
    reason = unknown if isinstance(error, UnidentifiedImageError) else error or type(error).__name__
    return BadImage(f"{name} holds no image that can be read: {reason}")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip, not scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are fractions")
    return image.convert("RGBA") if image.mode == "P" else image


def _middle(size: tuple[int, int], due: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box of the due proportions in the middle of an image."""
    scale = min(size[0] / due[0], size[1] / due[1])
    left, top = ((have - want * scale) / 2 for have, want in zip(size, due, strict=True))
    return max(left, 0), max(top, 0), min(size[0] - left, size[0]), min(size[1] - top, size[1])
