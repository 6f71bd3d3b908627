"""Nearly the same: what is done to a picture on its way is seen through, other pictures are not."""

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from raycnn.data.inspect import near_duplicates

SIZE = 48


def scenes(count: int) -> NDArray[np.uint8]:
    """(count, 48, 48, 3): smooth random pictures."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE))) for image in coarse])


def found(images: NDArray[np.uint8]) -> list[tuple[int, int]]:
    pairs = near_duplicates.near_duplicates(
        near_duplicates.thumbnails(images, np.arange(len(images)))
    )
    return sorted((pair.one, pair.other) for pair in pairs)


def saved_anew(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return Image.open(buffer)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "jpeg": saved_anew,
    "scaled": lambda image: image.resize((31, 31)).resize((SIZE, SIZE)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    images = scenes(40)
    copy = CHANGES[change](Image.fromarray(images[7]))
    assert found(np.concatenate([images, np.asarray(copy)[None]])) == [(7, 40)]


def test_the_search_finds_what_comparing_all_with_all_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", 16)
    noise = np.random.default_rng(1)
    images = np.repeat(scenes(30), 6, axis=0).astype(int)
    images += noise.integers(-40, 41, images.shape) * noise.integers(0, 2, (len(images), 1, 1, 1))
    thumbs = near_duplicates.thumbnails(
        images.clip(0, 255).astype(np.uint8), np.arange(len(images))
    )
    vectors = thumbs.astype(np.float32)
    every = [
        (i, j)
        for i, j in itertools.combinations(range(len(vectors)), 2)
        if np.linalg.norm(vectors[i] - vectors[j]) < near_duplicates.THRESHOLD
    ]
    pairs = near_duplicates.near_duplicates(thumbs)
    assert sorted(pair[:2] for pair in pairs) == every and len(every) > 100
    assert [pair.difference for pair in pairs] == sorted(pair.difference for pair in pairs)


def test_flat_images_are_like_nothing() -> None:
    flat = np.full((5, SIZE, SIZE, 3), 200, np.uint8)
    assert found(flat) == [] and found(np.concatenate([flat, scenes(3)])) == []


def test_images_smaller_than_a_thumbnail_are_compared_too() -> None:
    images = np.random.default_rng(2).integers(0, 256, (20, 5, 7, 1), np.uint8)
    assert found(np.concatenate([images, images[3:4]])) == [(3, 20)]


def test_of_very_many_pairs_some_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 50)
    assert len(found(np.repeat(scenes(1), 100, axis=0))) == 50


def test_real_digits_are_not_taken_for_one_another(real_data: object) -> None:
    from raycnn.data.sources.digits import Digits

    images = Digits().read()["train"].images
    assert found(images[np.arange(len(images))]) == []
