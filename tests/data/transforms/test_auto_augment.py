from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from raycnn.config.components import TRANSFORMS
from raycnn.config.schema import ComponentConfig
from raycnn.data.transforms.base import ImageTransform
from raycnn.data.transforms.pipeline import Pipeline, shape_after
from raycnn.errors import SpecError
from raycnn.shape import Shape

CASES = [
    pytest.param("rand_augment", {}, v2.RandAugment(), [9], id="rand"),
    pytest.param(
        "rand_augment",
        {"magnitude": 4, "num_magnitude_bins": 5},
        v2.RandAugment(magnitude=4, num_magnitude_bins=5),
        [4],
        id="strongest",
    ),
    pytest.param("trivial_augment", {}, v2.TrivialAugmentWide(), range(31), id="trivial"),
]


def transform(name: str, **options: Any) -> ImageTransform:
    step = TRANSFORMS.build(ComponentConfig(name=name, **options))
    assert isinstance(step, ImageTransform)
    return step


def image(channels: int, height: int, width: int) -> Tensor:
    """A smooth image, whose histogram is neither flat nor full, with noise."""
    torch.manual_seed(0)
    slope = torch.linspace(40, 150, height * width).view(1, height, width)
    noise = torch.randint(0, 60, (channels, height, width))
    return (slope + noise).to(torch.uint8)


def expected(theirs: Any, picture: Tensor, levels: list[int], bins: int) -> Iterator[Tensor]:
    """Torchvision's image for each operation, level and sign, in the order of the numbers."""
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        found = magnitudes(bins, *picture.shape[1:])
        for level, sign in product(levels, (1, -1)):
            magnitude = 0.0 if found is None else float(found[level])
            yield theirs._apply_image_or_video_transform(
                picture, name, sign * magnitude if signed else magnitude, "nearest", {}
            )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 40, 27), (1, 2, 5)], ids=str)
@pytest.mark.parametrize(("name", "options", "theirs", "levels"), CASES)
def test_each_operation_of_each_magnitude_and_sign_is_torchvisions(
    name: str, options: dict[str, int], theirs: Any, levels: list[int], shape: tuple[int, int, int]
) -> None:
    picture = image(*shape)
    wanted = torch.stack(
        [*expected(theirs, picture, levels, options.get("num_magnitude_bins", 31))]
    )
    numbers = (torch.arange(len(wanted)) + 0.5)[:, None] / len(wanted)
    ours = transform(name, **options | ({"num_ops": 1} if name == "rand_augment" else {}))
    found = ours(picture.expand(len(wanted), -1, -1, -1), numbers)
    unequal = (found != wanted).flatten(1).float().mean(1)
    assert unequal.max() <= 1e-3, unequal.nonzero().flatten()  # where a processor rounds otherwise
    changed = (wanted != picture).flatten(1).any(1).float().mean()
    assert changed > 0.2  # the comparison is not one of unchanged images


def test_operations_follow_each_other() -> None:
    batch, numbers = image(3, 16, 16).expand(50, -1, -1, -1), torch.rand(50, 3)
    one = transform("rand_augment", num_ops=1)
    wanted = batch
    for column in numbers.split(1, 1):
        wanted = one(wanted, column)
    assert torch.equal(transform("rand_augment", num_ops=3)(batch, numbers), wanted)


@pytest.mark.parametrize("name", ["rand_augment", "trivial_augment"])
def test_an_image_is_augmented_by_seed_epoch_and_sample_alone(name: str) -> None:
    pipeline = Pipeline([transform(name)], [0.0] * 3, [1.0] * 3)
    pictures = torch.stack([image(3, 20, 24).roll(n, 2) for n in range(40)])

    def augmented(epoch: int, samples: list[int], seed: int = 5) -> Tensor:
        numbers = pipeline.random_numbers(seed, epoch, np.array(samples))
        return pipeline(pictures[samples], torch.from_numpy(numbers))

    whole, order = augmented(2, [*range(40)]), torch.randperm(40).tolist()
    assert torch.equal(augmented(2, order), whole[order])
    alone = [augmented(2, [sample]) for sample in range(40)]
    assert torch.equal(torch.cat(alone), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 30
    for other in (augmented(3, [*range(40)]), augmented(2, [*range(40)], seed=6)):
        assert (other != whole).flatten(1).any(1).float().mean() > 0.5


def test_a_batch_in_channels_last_is_augmented_alike() -> None:
    batch, numbers = image(3, 16, 16).repeat(60, 1, 1, 1), torch.rand(60, 1)
    step = transform("trivial_augment")
    last = batch.to(memory_format=torch.channels_last)
    assert torch.equal(step(last, numbers), step(batch, numbers))


@pytest.mark.parametrize("name", ["rand_augment", "trivial_augment"])
def test_images_that_are_neither_gray_nor_rgb_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} .* 1 or 3 .*4"):
        shape_after([ComponentConfig(name=name)], Shape(4, 9, 12))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_ops": 0}, "num_ops: must be greater"),
        ({"magnitude": 31}, "magnitude: 31 is not below num_magnitude_bins 31"),
        ({"magnitude": -1}, "magnitude: must be greater"),
        ({"num_magnitude_bins": 1}, "num_magnitude_bins: must be greater"),
        ({"num_op": 1}, "num_op: unknown rand_augment option .*'num_ops'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(SpecError, match=f"data.transforms.*{said}"):
        TRANSFORMS.build(ComponentConfig(name="rand_augment", **options))
