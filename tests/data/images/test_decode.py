import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycnn.data.images import decoders
from raycnn.data.images.decode import (
    BadImage,
    Fit,
    ImageFormat,
    decode,
    decode_batch,
    find_image_format,
)
from raycnn.errors import DataError
from raycnn.runtime import device
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
    return decode(("it", picture), ImageFormat(Shape(channels, size, size), fit)).pixels


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


def test_sixteen_bits_of_gray_are_scaled_and_not_clipped() -> None:
    ramp = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    assert (seen(saved(ramp), 1, 8)[..., 0] == ramp >> 8).all()


@pytest.mark.parametrize("content", [b"", b"<html>", png()[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_named(content: bytes) -> None:
    with pytest.raises(BadImage, match="^it .+"):
        seen(content, 3, 8)


def test_a_picture_of_too_many_pixels_is_refused_before_it_fills_the_memory() -> None:
    bomb = bytearray(png())
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2  # its header's width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="it .*pixels"):
        seen(bytes(bomb), 3, 8)


def test_another_size_is_refused_unless_it_may_be_changed() -> None:
    with pytest.raises(DataError, match=r"9x7, .*8x8.*`data\.size`"):
        decode(("it", png((9, 7))), ImageFormat(Shape(3, 8, 8), None))


def test_processes_keep_the_order_and_the_faults_in_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = ImageFormat(Shape(3, 4, 4), None)
    pictures = [(str(i), png((4, 4), i) if i % 5 else b"") for i in range(99)]
    here = decode_batch(pictures, form)
    monkeypatch.setattr(decoders, "START_S", 0)
    monkeypatch.setattr(device, "cpu_threads", lambda: 3)
    for i, (image, same) in enumerate(zip(decode_batch(pictures, form), here, strict=True)):
        if i % 5:
            assert isinstance(image, np.ndarray) and np.array_equal(image, same)
            assert image[0, 0, 0] == i
        else:
            assert isinstance(image, BadImage) and str(image) == str(same)


def test_processes_find_a_picture_from_the_folder_that_they_are_asked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "START_S", 0)
    monkeypatch.setattr(device, "cpu_threads", lambda: 3)
    for color in (50, 90):
        (tmp_path / str(color)).mkdir()
        monkeypatch.chdir(tmp_path / str(color))
        Path("it.png").write_bytes(png((4, 4), color))
        (image,) = decode_batch([("it", "it.png")], ImageFormat(Shape(3, 4, 4), None))
        assert isinstance(image, np.ndarray) and image[0, 0, 0] == color


RAMP = np.arange(64).reshape(8, 8)


def formed(*pictures: bytes, max_value: float | None = None) -> ImageFormat:
    named = [(f"picture {k}", picture) for k, picture in enumerate(pictures)]
    return find_image_format(None, "crop", None, max_value, named)


@pytest.mark.parametrize(
    ("kind", "values", "white", "expected"),
    [
        ("TIFF", (RAMP * 4).astype(np.int32), 255, RAMP * 4),  # 8 bits in 32
        ("PNG", (RAMP * 64).astype(np.uint16), 4095, RAMP * 4),  # 12 bits in 16
        ("PNG", (RAMP * 16).astype(np.uint16), 1023, RAMP * 4),  # 10
        ("PNG", (RAMP * 256).astype(np.uint16), 16383, RAMP * 4),  # 14
        ("TIFF", (RAMP * 1024).astype(np.int32), 65535, RAMP * 4),
        ("TIFF", (RAMP * 4 / 255).astype(np.float32), 1, RAMP * 4),
        ("TIFF", (RAMP * 4).astype(np.float32), 255, RAMP * 4),
    ],
)
def test_pictures_of_more_than_8_bits_are_scaled_by_the_range_they_use(
    kind: str, values: np.ndarray, white: float, expected: np.ndarray
) -> None:
    picture = saved(values, kind)
    form = formed(picture, png((8, 8), mode="L"))
    assert form.max_value == white and form.shape == Shape(1, 8, 8)
    assert (decode(("it", picture), form).pixels[..., 0] == expected).all()
    alone = ImageFormat(form.shape, None)  # in prediction with weights that know no range
    assert (decode(("it", picture), alone).pixels[..., 0] == expected).all()


@pytest.mark.parametrize(
    "values",
    [
        (RAMP % 2).astype(np.int32),
        (RAMP - 3).astype(np.int32),
        (RAMP / 63 * 1.0001).astype(np.float32),
        np.full((8, 8), np.nan, np.float32),
        (RAMP * 10**6).astype(np.int32),
    ],
)
def test_a_range_that_is_not_clear_is_asked_for(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"picture 0.*`data\.max_value`"):
        formed(saved(values, "TIFF"))


def test_a_range_that_was_given_is_held_and_what_is_outside_named() -> None:
    picture = saved((RAMP % 2).astype(np.int32), "TIFF")
    form = formed(picture, max_value=1)
    assert np.unique(decode(("it", picture), form).pixels).tolist() == [0, 255]
    with pytest.raises(BadImage, match=r"^it .*`data\.max_value`"):
        decode(("it", saved(RAMP.astype(np.int32), "TIFF")), form)


def test_one_color_picture_makes_all_color_and_what_is_converted_is_told() -> None:
    gray, color = png((8, 8), 200, "L"), png((8, 8), 200)
    form = formed(gray, gray, color)
    assert form.shape == Shape(3, 8, 8)
    made, same = decode(("it", gray), form), decode(("it", color), form)
    assert made.conversions and not same.conversions
    assert (made.pixels == made.pixels[:, :, :1]).all()
    assert decode(("it", color), ImageFormat(Shape(1, 8, 8), None)).conversions
    assert decode(("it", png((8, 8), mode="RGBA")), form).conversions


def test_a_gif_of_several_frames_is_its_first_and_it_is_told() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), level) for level in (250, 20)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    first = decode(("it", buffer.getvalue()), ImageFormat(Shape(3, 8, 8), None))
    assert first.pixels.min() == 250 and len(first.conversions) == 1


def test_pictures_of_several_sizes_are_refused_naming_one_and_the_option() -> None:
    with pytest.raises(DataError, match=r"picture 2 .*7x5, .*8x8.*`data\.size`"):
        formed(png((8, 8)), png((8, 8)), png((7, 5)))


def png_of_16_bit_colors(pixels: np.ndarray) -> bytes:
    """Return a PNG of (H, W, 3) uint16, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    height, width, _ = pixels.shape
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [
        (b"IHDR", size + bytes([16, 2, 0, 0, 0])),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_colors_of_16_bits_are_read_unless_they_use_the_lower_ones_alone() -> None:
    colors = np.repeat(RAMP[..., None], 3, 2)
    picture = png_of_16_bit_colors(colors * 1024)
    form = formed(picture)
    assert form.max_value is None and form.shape == Shape(3, 8, 8)
    assert (decode(("it", picture), form).pixels == colors * 4).all()
    with pytest.raises(DataError, match="picture 0"):
        formed(png_of_16_bit_colors(colors * 64))
