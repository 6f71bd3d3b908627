from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from raycnn import dist
from raycnn.data.augment import Flip, PadCrop, Pipeline
from raycnn.data.loader import ABSENT, Batch, Loader, ahead


def loader(count: int, batch_size: int, shuffle: bool = True) -> Loader:
    """Of images that are all their own number."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    images = images.repeat(3, 3)
    pipeline = Pipeline([Flip(), PadCrop(1)], [0.0] * 3, [1.0] * 3)
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
) -> list[Batch]:
    """What one of several workers is given; the loader asks dist alone who it is."""
    monkeypatch.setattr(dist, "rank", lambda: rank)
    monkeypatch.setattr(dist, "world", lambda: world)
    return list(loader(count, 20).epoch(epoch, start))


@pytest.mark.parametrize("world", [1, 2, 3, 7, 25])
def test_every_image_counts_once_with_61_images(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world):
        for batch in share(monkeypatch, rank, world):
            counting = batch.labels[batch.labels != ABSENT].tolist()
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


def test_items_read_ahead_come_in_order_and_an_error_in_its_place() -> None:
    """As on an accelerator: on a CPU the loader reads when it is asked to."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise IndexError("the sixth")

    seen = []
    with pytest.raises(IndexError, match="the sixth"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == list(range(5))
