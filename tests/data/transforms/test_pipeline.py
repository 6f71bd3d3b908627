from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from raycnn.config.components import TRANSFORMS
from raycnn.config.schema import ComponentConfig
from raycnn.data.transforms.base import ImageTransform, sample_box
from raycnn.data.transforms.pipeline import Pipeline, shape_after
from raycnn.errors import SpecError
from raycnn.runtime import rng
from raycnn.shape import Shape
from tests.support.transforms import EVERY

NONE = torch.zeros(50, 0)


def images(count: int, channels: int = 3, height: int = 9, width: int = 12) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


def numbers(samples: list[int], count: int) -> Tensor:
    return torch.from_numpy(rng.uniform(5, 2, np.array(samples), count))


def transform(name: str, **options: Any) -> ImageTransform:
    step = TRANSFORMS.build(ComponentConfig(name=name, **options))
    assert isinstance(step, ImageTransform)
    return step


def pipeline(*names: str, **options: Any) -> Pipeline:
    """Of transforms whose options are all the same; images stay on the scale 0 to 1."""
    steps = [TRANSFORMS.build(ComponentConfig(name=name, **options)) for name in names]
    return Pipeline(steps, [0.0] * 3, [1.0] * 3)


def apart(one: Tensor, other: Tensor) -> int:
    """The most levels by which two pixels differ."""
    return int((one.int() - other.int()).abs().max())


def test_a_crop_is_cut_where_its_numbers_say() -> None:
    batch = images(50)
    drawn = numbers(list(range(50)), 2)
    cropped = transform("random_crop", padding=4)(batch, drawn)
    padded = torch.nn.functional.pad(batch, (4, 4, 4, 4))
    for image, (top, left), crop in zip(padded, (drawn * 9).long().tolist(), cropped, strict=True):
        assert torch.equal(crop, image[:, top : top + 9, left : left + 12])
    assert len({tuple(row) for row in (drawn * 9).long().tolist()}) > 20


def test_about_half_of_the_images_are_flipped_and_wholly() -> None:
    batch = images(200)
    flipped = transform("horizontal_flip")(batch, numbers(list(range(200)), 1))
    as_it_was = (flipped == batch).flatten(1).all(1)
    assert torch.equal(flipped[~as_it_was], batch[~as_it_was].flip(3))
    assert 70 < as_it_was.sum() < 130


@pytest.mark.parametrize("size", [5, 20, [4, 30]])
def test_resize_is_torchvisions(size: int | list[int]) -> None:
    sides = [size, size] if isinstance(size, int) else size
    theirs = functional.resize(images(4), sides, antialias=True)
    assert apart(transform("resize", size=size)(images(4), NONE[:4]), theirs) <= 1


@pytest.mark.parametrize("size", [9, 4, [3, 11]])
def test_a_center_crop_is_torchvisions(size: int | list[int]) -> None:
    sides = [size, size] if isinstance(size, int) else size
    cropped = transform("center_crop", size=size)(images(4), NONE[:4])
    assert torch.equal(cropped, functional.center_crop(images(4), sides))


@pytest.mark.parametrize(("height", "width"), [(40, 30), (9, 60)])
@pytest.mark.parametrize("size", [[8, 8], [14, 20], [50, 45]])
def test_a_random_crop_is_resized_as_torchvision_does(
    size: list[int], height: int, width: int
) -> None:
    batch, drawn = images(30, 3, height, width), numbers(list(range(30)), 4)
    ours = transform("random_resized_crop", size=size)(batch, drawn)
    boxes = torch.stack(sample_box(drawn, height, width, [0.08, 1.0], [3 / 4, 4 / 3]), 1)
    for image, box, crop in zip(batch, boxes.int().tolist(), ours, strict=True):
        assert apart(functional.resized_crop(image, *box, size, antialias=True), crop) <= 1


def test_boxes_are_inside_and_of_the_areas_and_ratios_asked_for() -> None:
    drawn = numbers(list(range(2000)), 4)
    for height, width in ((100, 200), (100, 100), (100, 20)):
        top, left, high, wide = sample_box(drawn, height, width, [0.1, 0.6], [0.5, 2.0])
        assert (top >= 0).all() and (top + high <= height).all() and (high >= 1).all()
        assert (left >= 0).all() and (left + wide <= width).all() and (wide >= 1).all()
        assert (wide / high).min() > 0.46 and (wide / high).max() < 2.15  # whole pixels
        area = high * wide / (height * width)
        assert area.max() < 0.62 and area.min() > 0.09
        if height == width:
            assert 0.32 < area.mean() < 0.38 and 0.9 < (wide / high).median() < 1.1
            assert ((top + high == height) | (top == 0)).float().mean() < 0.2


def test_a_box_of_the_whole_image_leaves_it_as_it_is() -> None:
    whole = transform("random_resized_crop", size=16, scale=[1, 1], ratio=[1, 1])
    batch = images(8, 1, 16, 16)
    assert torch.equal(whole(batch, numbers(list(range(8)), 4)), batch)


def test_in_evaluation_a_random_crop_is_the_middle_in_the_right_proportions() -> None:
    still = transform("random_resized_crop", size=[8, 10]).evaluation()
    assert isinstance(still, ImageTransform) and still.numbers == 0
    batch = images(4, 3, 20, 50)
    theirs = functional.resize(functional.center_crop(batch, [20, 25]), [8, 10], antialias=True)
    assert apart(still(batch, NONE[:4]), theirs) <= 1


@pytest.mark.parametrize(
    ("option", "strength", "theirs"),
    [
        ("brightness", 0.8, functional.adjust_brightness),
        ("contrast", 1.0, functional.adjust_contrast),
        ("saturation", 0.9, functional.adjust_saturation),
        ("hue", 0.5, functional.adjust_hue),
    ],
)
def test_colors_change_as_in_torchvision(option: str, strength: float, theirs: Any) -> None:
    batch = torch.cat([images(20), images(20) // 64 * 85])  # with equal channels, black and white
    drawn = numbers(list(range(40)), 4)
    ours = transform("color_jitter", **{option: strength})(batch, drawn)
    column = ["brightness", "contrast", "saturation", "hue"].index(option)
    for image, number, jittered in zip(batch, drawn[:, column].tolist(), ours, strict=True):
        moved = (2 * number - 1) * strength
        wanted = theirs(image / 255, moved if option == "hue" else 1 + moved)
        assert apart((wanted * 255).round(), jittered) <= 1


def test_colors_change_one_after_the_other_and_are_rounded_once() -> None:
    options = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    batch, drawn = images(20), numbers(list(range(20)), 4)
    ours = transform("color_jitter", **options)(batch, drawn)
    factors = (1 + (2 * drawn - 1) * torch.tensor(list(options.values()))).tolist()
    for image, (bright, contrast, saturation, hue), jittered in zip(
        batch, factors, ours, strict=True
    ):
        one = functional.adjust_brightness(image / 255, bright)
        one = functional.adjust_contrast(one, contrast)
        one = functional.adjust_hue(functional.adjust_saturation(one, saturation), hue - 1)
        assert apart((one * 255).round(), jittered) <= 1


def test_gray_images_have_neither_saturation_nor_hue() -> None:
    batch = images(9, 1)
    jitter = transform("color_jitter", saturation=1.0, hue=0.5)
    assert torch.equal(jitter(batch, numbers(list(range(9)), 4)), batch)
    assert not torch.equal(transform("color_jitter", contrast=1)(batch, numbers([1] * 9, 4)), batch)


def test_an_erased_box_has_the_mean_color_and_the_rest_stays() -> None:
    batch, drawn = images(200, 3, 20, 30), numbers(list(range(200)), 5)
    erased = transform("random_erasing", p=0.25)(batch, drawn)
    boxes = torch.stack(sample_box(drawn[:, 1:], 20, 30, [0.02, 0.33], [0.3, 3.3]), 1).int()
    touched = 0
    for image, number, box, found in zip(
        batch, drawn[:, 0].tolist(), boxes.tolist(), erased, strict=True
    ):
        top, left, high, wide = box
        wanted = image.clone()
        if number < 0.25:
            touched += 1
            mean = image.float().mean((1, 2)).round().byte()
            wanted[:, top : top + high, left : left + wide] = mean[:, None, None]
        assert torch.equal(found, wanted)
    assert 30 < touched < 70


@pytest.mark.parametrize("choice", EVERY, ids=lambda choice: choice.name)
def test_training_and_evaluation_see_the_shape_that_was_said(choice: ComponentConfig) -> None:
    said = shape_after([choice], Shape(3, 9, 12))
    training = Pipeline([TRANSFORMS.build(choice)], [0.5] * 3, [0.2] * 3)
    for each in (training, training.evaluation()):
        drawn = torch.from_numpy(each.random_numbers(0, 0, np.arange(5)))
        assert each(images(5), drawn).shape == (5, *said)
    assert training.evaluation().numbers == 0


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    steps = [transform("random_crop", padding=2), transform("horizontal_flip")]
    both = Pipeline(steps, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    batch = images(20)
    whole = both(batch, numbers(list(range(20)), 3))
    parts = [both(batch[i : i + 1], numbers([i], 3)) for i in range(20)]
    assert torch.equal(whole, torch.cat(parts))


def test_normalized_images_are_on_the_scale_of_their_statistics() -> None:
    bare = Pipeline([], [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    found = bare(images(4), NONE[:4])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (bare.mean, bare.std))
    assert torch.allclose(found, (images(4) / 255 - mean) / std, atol=1e-5)


def test_evaluation_keeps_only_what_is_not_random() -> None:
    resize = transform("resize", size=6)
    steps = [resize, transform("random_crop", padding=2), transform("horizontal_flip")]
    evaluation = Pipeline(steps, [0.0] * 3, [1.0] * 3).evaluation()
    assert evaluation.numbers == 0
    still = resize(images(3), NONE[:3]) / 255
    assert torch.allclose(evaluation(images(3), NONE[:3]), still, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixed_up_images_are_weighted_sums_by_a_beta_law(alpha: float) -> None:
    mixup = pipeline("mixup", alpha=alpha)
    drawn = torch.from_numpy(mixup.random_numbers(1, 0, np.arange(3001)))
    batch = mixup(images(3001, 3, 2, 2), drawn)
    own, other = batch[:-1].clone(), batch[1:].clone()
    mixed, kept = mixup.mixed(batch, drawn)
    weight = kept[:, None, None, None]
    assert torch.allclose(mixed, weight * own + (1 - weight) * other, atol=1e-6)
    assert abs(kept.mean() - 0.5) < 0.03
    assert abs(kept.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_cut_images_are_in_part_the_other_and_the_label_knows_how_much() -> None:
    cutmix = pipeline("cutmix")
    drawn = torch.from_numpy(cutmix.random_numbers(1, 0, np.arange(501)))
    batch = torch.arange(501.0).view(-1, 1, 1, 1).repeat(1, 3, 20, 31)  # each its own number
    mixed, kept = cutmix.mixed(batch, drawn)
    own = torch.arange(500.0).view(-1, 1, 1, 1)
    assert ((mixed == own) | (mixed == own + 1)).all()
    assert torch.allclose((mixed == own).float().mean((1, 2, 3)), kept, atol=1e-6)
    for image in mixed[:50, 0] - own[:50, 0]:  # what is cut out is one box
        rows, columns = image.amax(1).nonzero(), image.amax(0).nonzero()
        assert image.sum() == len(rows) * len(columns)
    uncut = drawn[:-1, 1]  # of the box before it is cut off at the border
    assert (kept >= uncut - 1e-6).all() and 0.4 < uncut.mean() < 0.6
    assert 0.001 < (kept - uncut).mean() < 0.3


def test_with_mixup_and_cutmix_each_image_draws_one() -> None:
    both = pipeline("mixup", "cutmix", alpha=1.0)
    drawn = torch.from_numpy(both.random_numbers(1, 0, np.arange(401)))
    batch = torch.arange(401.0).view(-1, 1, 1, 1).repeat(1, 3, 16, 16)
    mixed, kept = both.mixed(batch, drawn)
    assert torch.allclose(mixed.mean((1, 2, 3)), torch.arange(400) + 1 - kept, atol=1e-3)
    even = mixed.amax((1, 2, 3)) - mixed.amin((1, 2, 3)) < 1e-3
    assert 150 < even.sum() < 270  # mixed up, or cut where nothing is left of a box


def choices(*entries: Any) -> list[ComponentConfig]:
    return [ComponentConfig.model_validate(entry) for entry in entries]


def test_nothing_stands_after_what_mixes_images() -> None:
    shape = Shape(3, 9, 12)
    assert shape_after(choices("horizontal_flip", "mixup", "cutmix"), shape) == shape
    with pytest.raises(SpecError, match="horizontal_flip .*cutmix"):
        shape_after(choices("mixup", "cutmix", "horizontal_flip"), shape)


@pytest.mark.parametrize(
    ("choice", "channels", "said"),
    [
        ({"name": "center_crop", "size": [9, 13]}, 3, "9 x 13 is not inside images of 9 x 12"),
        ({"name": "color_jitter", "hue": 0.1}, 4, "1 or 3 channels, not 4"),
    ],
)
def test_a_transform_that_does_not_fit_the_images_is_refused(
    choice: dict[str, Any], channels: int, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        shape_after(choices(choice), Shape(channels, 9, 12))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"name": "random_crop"}, "padding: is missing"),
        ({"name": "random_crop", "padding": 0}, "padding: must be greater than 0"),
        ({"name": "random_crop", "padding": 1000}, "padding: must be less than or equal to 512"),
        (
            {"name": "random_crop", "padding": 2, "pading": 1},
            "pading: unknown random_crop option .*'padding'",
        ),
        ({"name": "resize", "size": "small"}, r"size: must be a number of pixels, or \[height"),
        ({"name": "resize", "size": [1, 2, 3]}, r"size: must be a number of pixels, or \[height"),
        ({"name": "resize", "size": [8, 0]}, "size: must be greater than 0"),
        ({"name": "center_crop", "size": True}, "size: must be a valid integer"),
        ({"name": "random_resized_crop", "size": 5000}, "size: must be less than or equal to 4096"),
        ({"name": "random_resized_crop", "size": 8, "scale": [0, 1]}, "scale: must be greater"),
        ({"name": "random_resized_crop", "size": 8, "scale": [0.5, 2]}, "scale: must be less"),
        (
            {"name": "random_resized_crop", "size": 8, "scale": [0.5, 0.1]},
            "scale: .*the least first",
        ),
        ({"name": "random_resized_crop", "size": 8, "ratio": [1]}, "ratio: must be two numbers"),
        ({"name": "random_resized_crop", "size": 8, "ratio": [0, 1]}, "ratio: must be greater"),
        ({"name": "random_erasing", "p": 1.1}, "p: must be less than or equal to 1"),
        ({"name": "random_erasing", "scale": [0.4, 0.2]}, "scale: .*the least first"),
        ({"name": "color_jitter"}, "color_jitter needs brightness"),
        ({"name": "color_jitter", "brightness": -0.1}, "brightness: must be greater"),
        ({"name": "color_jitter", "hue": 0.6}, "hue: must be less than or equal to 0.5"),
        ({"name": "mixup", "alpha": 0}, "alpha: must be greater than or equal to 0.01"),
        ({"name": "cutmix", "alpha": float("nan")}, "alpha: must be a finite number"),
    ],
)
def test_a_wrong_option_is_refused(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=f"data.transforms.*{said}"):
        TRANSFORMS.build(ComponentConfig(**choice))
