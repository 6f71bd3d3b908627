import numpy as np
import pytest
import torch
from torch import Tensor

from raycnn import seeds
from raycnn.data.augment import TRANSFORMS, Flip, PadCrop, Pipeline, Resize
from raycnn.errors import SpecError
from raycnn.spec import Choice


def images(count: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (count, 3, 9, 12), dtype=torch.uint8)


def numbers(samples: list[int], count: int) -> Tensor:
    return torch.from_numpy(seeds.uniform(5, 2, np.array(samples), count)).float()


def test_a_crop_is_cut_where_its_numbers_say() -> None:
    batch = images(50)
    drawn = numbers(list(range(50)), 2)
    cropped = PadCrop(4)(batch, drawn)
    padded = torch.nn.functional.pad(batch, (4, 4, 4, 4))
    for image, (top, left), crop in zip(padded, (drawn * 9).long().tolist(), cropped, strict=True):
        assert torch.equal(crop, image[:, top : top + 9, left : left + 12])
    assert len({tuple(row) for row in (drawn * 9).long().tolist()}) > 20


def test_about_half_of_the_images_are_flipped_and_wholly() -> None:
    batch = images(200)
    flipped = Flip()(batch, numbers(list(range(200)), 1))
    as_it_was = (flipped == batch).flatten(1).all(1)
    assert torch.equal(flipped[~as_it_was], batch[~as_it_was].flip(3))
    assert 70 < as_it_was.sum() < 130


def test_resize_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    for size in (5, 20):
        theirs = functional.resize(images(4), [size, size], antialias=True)
        assert (Resize(size)(images(4), torch.zeros(4, 0)).int() - theirs.int()).abs().max() <= 1


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    pipeline = Pipeline([PadCrop(2), Flip()], [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    batch = images(20)
    whole = pipeline(batch, numbers(list(range(20)), 3))
    parts = [pipeline(batch[i : i + 1], numbers([i], 3)) for i in range(20)]
    assert torch.equal(whole, torch.cat(parts))


def test_normalised_images_are_on_the_scale_of_their_statistics() -> None:
    pipeline = Pipeline([], [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    found = pipeline(images(4), torch.zeros(4, 0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pipeline.mean, pipeline.std))
    assert torch.allclose(found, (images(4) / 255 - mean) / std, atol=1e-5)


def test_evaluation_keeps_only_what_is_not_random() -> None:
    pipeline = Pipeline([Resize(6), PadCrop(2), Flip()], [0.0] * 3, [1.0] * 3).evaluation()
    assert pipeline.numbers == 0
    none = torch.zeros(3, 0)
    still = Resize(6)(images(3), none) / 255
    assert torch.allclose(pipeline(images(3), none), still, atol=1e-6)


@pytest.mark.parametrize("option", [{"padding": 0}, {"padding": 1000}, {"pading": 1}, {}])
def test_a_wrong_option_is_refused(option: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="data.transforms.pad"):
        TRANSFORMS.build(Choice(name="pad_crop", **option))
