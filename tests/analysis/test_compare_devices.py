"""The same steps on several devices, compared. With an NPU: tests/npu."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from raycnn.analysis import compare_devices
from raycnn.analysis.compare_devices import compare_steps
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, SpecError
from raycnn.training import setup
from raycnn.training.checkpoint import TrainingState

MakeJob = Callable[..., JobSpec]

HARD = {
    "model": {"name": "alexnet", "form": "small"}, "data.limit": 30, "train.batch_size": 8,
    "data.transforms": [{"name": "resize", "size": 12}, "horizontal_flip", "mixup"],
    "train.micro_batch": 3, "train.clip_norm": 0.1, "optimizer.lr": 1e-3,
}  # fmt: skip


def test_a_device_differs_from_itself_by_nothing(job: MakeJob) -> None:
    """Over more steps than an epoch has."""
    gaps = list(compare_steps(job(), ["cpu", "cpu", "cpu"], 8))
    assert [gap.step for gap in gaps] == [k for k in range(1, 9) for _ in range(2)]
    assert all(gap.loss_gap == gap.gap == gap.relative == 0 for gap in gaps)
    assert all(gap.largest > 0 for gap in gaps)


def test_nothing_that_is_drawn_tells_devices_apart(job: MakeJob) -> None:
    """Dropout would, for it is left out; augmentation is done once."""
    assert all(
        gap.loss_gap == gap.gap == 0 for gap in compare_steps(job(**HARD), ["cpu", "cpu"], 2)
    )


def test_a_difference_is_measured_and_placed(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second device begins with biases of the last layer that make it say one class."""
    begun = []

    def other(job: JobSpec, splits: Any, device: torch.device) -> TrainingState:
        state = setup.new_training_state(job, splits, device)
        if begun:
            last = [p for p in state.model.parameters() if p.shape == (10,)][-1]
            last.data[0] += 50
        begun.append(state)
        return state

    monkeypatch.setattr(compare_devices, "new_training_state", other)
    (gap,) = compare_steps(job(train__batch_size=20), ["cpu", "cpu"], 1)
    # Nearly even before, and all for class 0 now: the bias's gradient moves by 0.9 there, and the
    # loss of the other classes' images by 50.
    assert 40 < gap.loss_gap < 50
    assert gap.gap > 0.8 and gap.relative == gap.gap / gap.largest
    assert gap.where.endswith("bias")


def test_a_device_that_is_not_there_and_one_alone_are_refused(job: MakeJob) -> None:
    with pytest.raises(EnvironmentUnavailable, match="torch_npu is not installed"):
        next(compare_steps(job(), ["cpu", "npu"], 1))
    with pytest.raises(SpecError, match="--devices lists 1"):
        next(compare_steps(job(), ["cpu"], 1))
