"""What a step of training can do besides: parts, averages, weights, narrow floats."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec, Train
from raycnn.data.loader import Batch
from raycnn.data.splits import open_splits
from raycnn.errors import SpecError
from raycnn.runs.directory import Run
from raycnn.training.callbacks import StoppedEarly
from raycnn.training.ema import EMA
from raycnn.training.loss_scale import LossScale
from raycnn.training.optim import sgd
from raycnn.training.schedules import Rates
from raycnn.training.step import class_weights, forward, split_alike
from tests.support.processes import ended, workers
from tests.support.runs import distance, happened, numbers, same, train, weights

MakeJob = Callable[..., JobSpec]
MIXED = [{"name": "resize", "size": 12}, {"name": "mixup"}, {"name": "cutmix"}]


def beside(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.weights("last") / "optimizer.safetensors")


def with_dropout(job: JobSpec) -> JobSpec:
    """squeezenet has dropout, no batch norm, and is small."""
    return job.change(
        {"model": "torchvision:squeezenet1_1", "data.transforms": [{"name": "resize", "size": 24}]}
    )


def test_micro_batches_equal_the_whole_batch(job: MakeJob) -> None:
    """Dropout included: every part draws its rows of the whole batch's mask."""
    spec = with_dropout(job(train__epochs=1, data__limit=32))
    whole, parts = train(spec), train(spec.change({"train.micro_batch": 5}))
    assert distance(weights(whole), weights(parts)) < 1e-5


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_with_synchronized_batch_norm_all_workers_have_as_many_micro_batches(workers: int) -> None:
    for total, size in itertools.product(range(1, 40), range(1, 12)):
        splits = []
        for share in map(len, np.array_split(np.arange(total), workers)):
            images = torch.arange(max(share, 1))  # one without a share has an image all the same
            batch = Batch(images, images, None, None, first=5, total=total, count=share)
            parts = split_alike(batch, size, workers)
            assert torch.equal(torch.cat([part.images for part in parts]), images)
            assert [part.first for part in parts] == [5 + int(p.images[0]) for p in parts]
            assert all(0 < len(part.images) <= max(size, 2) for part in parts)
            splits.append(len(parts))
        assert len({*splits}) == 1, (total, size)


def test_two_workers_equal_one_with_all_of_it(job: MakeJob, tmp_path: Path) -> None:
    spec = job(
        train__epochs=2, data__limit=61, data__transforms=MIXED, train__micro_batch=3,
        train__ema=0.9, train__class_weights="balanced", train__balanced=True,
    )  # fmt: skip
    alone = train(spec)
    with (tmp_path / "job.yaml").open("w") as file:
        yaml_file.dump(spec.tree(), file)
    codes, said = ended(workers(2, tmp_path / "job.yaml", "workers.count=2", cwd=tmp_path))
    assert codes == {0}, said
    both = Run(alone.folder.with_name("2"))
    assert distance(weights(alone), weights(both)) < 1e-5
    assert distance(beside(alone), beside(both)) < 1e-4


@pytest.mark.parametrize("stop_at", [3, 6])
def test_resume_is_exact_with_all_of_it(job: MakeJob, stop_at: int) -> None:
    from raycnn.errors import Interrupted

    changes = {
        "train__ema": 0.95, "train__precision": "fp16", "train__balanced": True,
        "data__transforms": MIXED, "train__clip_norm": 1.0, "train__micro_batch": 20,
    }  # fmt: skip
    unbroken = train(job(**changes))
    run = Run.create(job(**changes))
    with pytest.raises(Interrupted):
        train(job(**changes), run, stop_at=stop_at)
    train(job(**changes), run)
    assert same(weights(run), weights(unbroken)) and same(beside(run), beside(unbroken))
    assert numbers(run) == numbers(unbroken)


def test_the_average_is_what_is_kept_and_training_goes_on_without_it(job: MakeJob) -> None:
    plain, averaged = train(job()), train(job(train__ema=0.9))
    raw = {k.removeprefix("raw/"): t for k, t in beside(averaged).items() if k.startswith("raw/")}
    assert same(raw, weights(plain))
    assert not same(weights(averaged), raw)
    assert plain.rows()[-1]["train/loss"] == averaged.rows()[-1]["train/loss"]
    assert plain.rows()[-1]["val/loss"] != averaged.rows()[-1]["val/loss"]


def test_the_average_follows_its_formula() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    average, expected = EMA(0.5, {"w": weight}), 0.0
    for step in range(20):
        torch.nn.init.constant_(weight, step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["w"].item() == pytest.approx(expected)
    with average.in_place():
        assert weight.item() == average.tensors["w"].item()
    assert weight.item() == 19


def test_class_weights_have_a_mean_of_one_over_the_images() -> None:
    counts = np.array([10, 30, 60])
    for setting in ("balanced", [1.0, 2.0, 5.0]):
        drawn = class_weights(setting, counts)
        assert drawn is not None and (drawn.numpy() * counts).sum() == pytest.approx(100)
    assert class_weights("balanced", counts).tolist() == pytest.approx(
        [100 / 30, 100 / 90, 100 / 180]
    )  # type: ignore[union-attr]
    with pytest.raises(SpecError, match="train.class_weights: 2 .*3 "):
        class_weights([1.0, 2.0], counts)


def test_class_weights_reach_the_loss(job: MakeJob) -> None:
    uneven = [5.0, *[1.0] * 9]
    plain, weighted = (train(job(train__epochs=1, train__class_weights=w)) for w in (None, uneven))
    even = train(job(train__epochs=1, train__class_weights=[2.0] * 10))
    assert (
        distance(weights(plain), weights(even)) < 1e-6 < distance(weights(plain), weights(weighted))
    )


def test_fp16_clips_the_gradients_that_fp32_would(job: MakeJob) -> None:
    """Scaled ones would all be clipped to nothing."""
    full, half = (
        train(job(train__epochs=2, train__clip_norm=0.5, train__precision=p))
        for p in ("fp32", "fp16")
    )
    losses = [float(run.rows()[-1]["train/loss"]) for run in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_loss_of_mixed_images_is_of_both_their_labels() -> None:
    logits, own, other = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    kept = torch.tensor([0.2, 0.9, 0.5, 1.0])
    batch = Batch(torch.zeros(4, 1, 2, 2), own, other, kept, first=0, total=4, count=4)
    model = lambda images: logits  # noqa: E731
    loss = forward(model, batch, Train(epochs=1, batch_size=4))[1]  # type: ignore[arg-type]
    both = torch.stack([kept, 1 - kept])
    soft = both[0, :, None] * F.one_hot(own, 3) + both[1, :, None] * F.one_hot(other, 3)
    assert loss.item() == pytest.approx(
        F.cross_entropy(logits, soft, reduction="sum").item(), rel=1e-5
    )


def test_balanced_epochs_hold_every_class_equally_often(job: MakeJob) -> None:
    spec = job(train__balanced=True, data__limit=100, data__val=0)
    splits = open_splits(spec)
    source_split, members = splits.members["train"]
    labels = splits.cache.splits[source_split].labels
    few = np.concatenate([members[labels[members] > 1], members[labels[members] == 1][:3]])
    splits.members["train"] = (source_split, few)  # no zeros, and three ones
    loader = splits.loader("train", spec, torch.device("cpu"), training=True)
    epochs = [torch.cat([b.labels for b in loader.epoch(k)]) for k in (0, 0, 1)]
    counts = torch.bincount(epochs[0])[1:]
    assert counts.sum() == len(few) and counts.max() - counts.min() <= 1
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])


def test_training_stops_when_validation_is_not_better_for_long(job: MakeJob) -> None:
    """A rate too small to change anything: no epoch after the first is the better one."""
    run = train(job(optimizer__lr=1e-30, schedule="constant", train__epochs=9, train__patience=2))
    assert len(run.rows()) == 3 and (run.result() or {})["best_epoch"] == 1
    (stopped,) = happened(run, StoppedEarly)
    assert stopped.patience == 2


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    scale, weight = LossScale(torch.device("cpu")), torch.nn.Parameter(torch.ones(2))
    optimizer = sgd([("w", weight)], lr=1.0, momentum=0.9)
    for gradient, expected in ((float("inf"), 1.0), (scale.INIT_SCALE / 2, 0.0)):
        weight.grad = torch.full((2,), gradient)
        scale.unscale(optimizer.gradients())
        optimizer.step(Rates(1.0), scale.overflow)
        scale.update()
        assert weight.tolist() == [expected] * 2
    assert scale.factor.item() == scale.INIT_SCALE / 2


def test_batch_norm_over_workers_is_refused_on_a_cpu(job: MakeJob, tmp_path: Path) -> None:
    from raycnn.runtime.device import check_training

    with pytest.raises(SpecError, match="train.sync_batch_norm: .*cuda, npu, xpu"):
        check_training(Train(epochs=1, batch_size=1, sync_batch_norm=True), "cpu")


def test_the_layout_does_not_change_the_result(job: MakeJob) -> None:
    one, other = (train(job(train__epochs=1, train__channels_last=way)) for way in (True, False))
    assert distance(weights(one), weights(other)) < 1e-5


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_result(job: MakeJob) -> None:
    one, other = (train(job(train__epochs=1, train__compile=way)) for way in (True, False))
    assert distance(weights(one), weights(other)) < 1e-4
