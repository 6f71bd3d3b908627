from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from raycnn.config.components import TRANSFORMS
from raycnn.config.schema import ComponentConfig
from raycnn.data import loader as loading
from raycnn.data.loader import IGNORE_INDEX, MAX_SHARE, Batch, Loader
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.runtime import distributed
from raycnn.runtime.device import DEVICE_KINDS
from tests.support.transforms import EVERY

PLAIN = [ComponentConfig(name="horizontal_flip"), ComponentConfig(name="random_crop", padding=1)]
MIXED = [
    ComponentConfig(name="horizontal_flip"),
    ComponentConfig(name="mixup"),
    ComponentConfig(name="cutmix"),
]


def loader(
    count: int, batch_size: int, shuffle: bool = True, choices: Sequence[ComponentConfig] = PLAIN
) -> Loader:
    """Of images of 9 x 12 that are all different."""
    images = np.arange(count)[:, None] * np.arange(1, 1 + 9 * 12 * 3) % 251
    images = images.astype(np.uint8).reshape(count, 9, 12, 3)
    pipeline = Pipeline([TRANSFORMS.build(choice) for choice in choices], [0.0] * 3, [1.0] * 3)
    return Loader(
        images, np.arange(count), np.arange(count), pipeline,
        batch_size=batch_size, seed=1, shuffle=shuffle, device=torch.device("cpu"),
    )  # fmt: skip


def share(
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    world: int,
    *,
    count: int = 61,
    epoch: int = 0,
    start: int = 0,
    choices: Sequence[ComponentConfig] = PLAIN,
) -> list[Batch]:
    """What one of several workers is given; the loader asks dist alone who it is."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    return list(loader(count, 20, choices=choices).epoch(epoch, start))


@pytest.mark.parametrize("world", [1, 2, 3, 7, 25])
def test_every_image_counts_once_with_61_images(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world):
        for batch in share(monkeypatch, rank, world):
            counting = batch.labels[batch.labels != IGNORE_INDEX].tolist()
            assert len(counting) == batch.count
            seen.update(counting)
    assert seen == Counter(range(61))


@pytest.mark.parametrize("world", [2, 3, 7, 25])
def test_workers_share_the_very_batches_that_one_would_have(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    alone = share(monkeypatch, 0, 1)
    shares = [share(monkeypatch, rank, world) for rank in range(world)]
    for step, batch in enumerate(alone):
        parts = [part[step] for part in shares if part[step].count]
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert [part.first for part in parts] == np.cumsum([0, *(p.count for p in parts)])[
            :-1
        ].tolist()
        assert {part.total for part in parts} == {batch.total}


def names(choices: list[ComponentConfig]) -> str:
    return "+".join(choice.name for choice in choices)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def joined(parts: list[Batch], field: str) -> Tensor | None:
    """What the shares of a batch have between them."""
    values = [getattr(part, field) for part in parts if part.count]
    return None if values[0] is None else torch.cat(values)


@pytest.mark.parametrize("choices", [*([choice] for choice in EVERY), MIXED, PLAIN], ids=names)
def test_every_transform_gives_the_same_at_any_worker_count_and_after_resume(
    monkeypatch: pytest.MonkeyPatch, choices: list[ComponentConfig]
) -> None:
    alone = share(monkeypatch, 0, 1, epoch=3, choices=choices)
    for world in (3, 25):  # 61 images in batches of 20: the last has one, and most have no share
        shares = [
            share(monkeypatch, rank, world, epoch=3, start=1, choices=choices)
            for rank in range(world)
        ]
        for whole, *parts in zip(alone[1:], *shares, strict=True):
            for field in ("images", "labels", "mixed_labels", "mix_weights"):
                assert same(joined(parts, field), getattr(whole, field))


def test_an_image_is_mixed_with_the_next_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    mixup = [ComponentConfig(name="mixup", alpha=1.0)]
    for mixed, plain in zip(
        share(monkeypatch, 0, 1, choices=mixup), share(monkeypatch, 0, 1, choices=[]), strict=True
    ):
        assert mixed.mixed_labels is not None and mixed.mix_weights is not None
        assert plain.mixed_labels is None and plain.mix_weights is None
        assert torch.equal(mixed.mixed_labels, plain.labels.roll(-1))
        weight = mixed.mix_weights[:, None, None, None]
        wanted = weight * plain.images + (1 - weight) * plain.images.roll(-1, 0)
        assert torch.allclose(mixed.images, wanted, atol=1e-6)
        assert mixed.count == len(mixed.images) == len(mixed.labels) == len(mixed.mix_weights)


def test_a_share_that_is_none_counts_nothing_also_where_images_are_mixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = share(monkeypatch, 0, 25, choices=MIXED)[-1]
    assert batch.count == 0 and len(batch.images) == 1 and batch.mixed_labels is not None
    assert batch.labels.tolist() == batch.mixed_labels.tolist() == [IGNORE_INDEX]


def test_evaluation_mixes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluating = loader(61, 20, shuffle=False, choices=MIXED)
    evaluating.pipeline = evaluating.pipeline.evaluation()
    assert all(
        batch.mixed_labels is None and batch.mix_weights is None for batch in evaluating.epoch(0)
    )


def test_every_worker_goes_through_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {len(share(monkeypatch, rank, 25)) for rank in range(25)} == {4}
    assert all(len(batch.labels) for batch in share(monkeypatch, 0, 25))


def test_an_epoch_begun_in_its_middle_goes_on_as_it_would_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, rest = share(monkeypatch, 0, 1, epoch=4), share(monkeypatch, 0, 1, epoch=4, start=2)
    assert len(rest) == 2
    for late, early in zip(rest, whole[2:], strict=True):
        assert torch.equal(late.images, early.images) and torch.equal(late.labels, early.labels)


def test_epochs_differ_in_order_and_evaluation_keeps_the_order() -> None:
    first, second = (torch.cat([b.labels for b in loader(61, 20).epoch(e)]) for e in (0, 1))
    assert not torch.equal(first, second)
    still = torch.cat([b.labels for b in loader(61, 20, shuffle=False).epoch(0)])
    assert still.tolist() == list(range(61))


@pytest.mark.parametrize("choices", [MIXED, PLAIN], ids=names)
def test_images_are_the_same_whether_they_stay_on_the_device_or_are_copied_for_each_batch(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    choices: list[ComponentConfig],
) -> None:
    """The CPU plays a device that has memory of its own."""
    caplog.set_level("INFO", "raycnn")
    monkeypatch.setattr(loading, "CHUNK_BYTES", 3000)  # 9 images of 324 bytes

    def batches(free: float) -> list[Batch]:
        kind = replace(DEVICE_KINDS["cpu"], free_bytes=lambda device: int(free))
        monkeypatch.setitem(DEVICE_KINDS, "cpu", kind)
        some = loader(61, 20, choices=choices)
        some.labels, some.members, some.balanced = some.labels % 3, np.arange(60, 10, -1), True
        return [*some.epoch(2), *some.epoch(3, start=1)]

    least = 50 * 324 / MAX_SHARE
    copied, kept = batches(least - 1), batches(least)
    assert [record.getMessage()[:9] for record in caplog.records] == ["50 images"]
    for one, other in zip(copied, kept, strict=True):
        for field in fields(Batch):
            values = getattr(one, field.name), getattr(other, field.name)
            assert same(*values) if isinstance(values[0], Tensor) else values[0] == values[1]
