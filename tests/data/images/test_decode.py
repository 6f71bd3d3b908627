import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycnn.data.images.decode import BadImage, Fit, ImageFormat, decode, decode_batch
from raycnn.errors import DataError
from raycnn.shape import Shape
from tests.support.images import png


def saved(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def halves(height: int, width: int) -> np.ndarray:
    """Left black, right white."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = 255
    return image


def seen(picture: bytes, channels: int, size: int, fit: Fit | None = "crop") -> np.ndarray:
    return decode(("it", picture), ImageFormat(Shape(channels, size, size), fit, convert=True))


def test_a_crop_keeps_the_middle_and_a_stretch_keeps_all() -> None:
    bars = np.repeat(np.array([0, 0, 100, 200, 255, 255], np.uint8), 10)
    picture = saved(np.broadcast_to(bars[None, :, None], (20, 60, 3)).copy())
    assert set(np.unique(seen(picture, 3, 20))) == {100, 200}
    assert {0, 255} < set(np.unique(seen(picture, 3, 20, "stretch")))


def test_a_picture_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn it right
    turned = seen(saved(halves(8, 8), exif=exif), 3, 8)[..., 0]
    assert (turned[:4] == 0).all() and (turned[4:] == 255).all()


def test_a_large_jpeg_looks_as_if_it_were_decoded_whole() -> None:
    yy, xx = np.mgrid[:800, :900]
    smooth = np.stack([yy // 4, xx // 4, (xx + yy) // 8], 2).astype(np.uint8)
    jpeg = saved(smooth, "JPEG", quality=95)
    whole = np.array(Image.open(io.BytesIO(jpeg)).crop((50, 0, 850, 800)).resize((32, 32), 2))
    assert np.abs(seen(jpeg, 3, 32).astype(int) - whole).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_picture_becomes_the_kind_asked_for(mode: str, channels: int) -> None:
    assert seen(png((5, 5), 255, mode), channels, 5, None).shape == (5, 5, channels)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped() -> None:
    ramp = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    assert (seen(saved(ramp), 1, 8)[..., 0] == ramp >> 8).all()


@pytest.mark.parametrize("content", [b"", b"<html>", png()[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_named(content: bytes) -> None:
    with pytest.raises(BadImage, match="^it holds no image that can be read: .+"):
        seen(content, 3, 8)


def test_a_picture_of_too_many_pixels_is_refused_before_it_fills_the_memory() -> None:
    bomb = bytearray(png())
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2  # its header's width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="decompression bomb"):
        seen(bytes(bomb), 3, 8)


def test_another_size_or_kind_is_refused_unless_it_may_be_changed() -> None:
    frame = ImageFormat(Shape(3, 8, 8), None, convert=False, remedy=": do this")
    with pytest.raises(DataError, match="it is 9x7, not 8x8: do this"):
        decode(("it", png((9, 7))), frame)
    with pytest.raises(DataError, match="it is grey, not colour: do this"):
        decode(("it", png((8, 8), mode="L")), frame)


def test_threads_keep_the_order_and_the_faults_in_their_places(tmp_path: Path) -> None:
    import torch

    frame = ImageFormat(Shape(3, 4, 4), None, convert=True)
    pictures = [(str(i), png((4, 4), i) if i % 5 else b"") for i in range(23)]
    torch.set_num_threads(4)
    try:
        done = decode_batch(pictures, frame)
    finally:
        torch.set_num_threads(1)
    for i, image in enumerate(done):
        assert isinstance(image, BadImage) if i % 5 == 0 else image[0, 0, 0] == i
