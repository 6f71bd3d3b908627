import gc
import math
import time
import tracemalloc

import pytest
import torch
from torch.nn import functional as F

from raycnn.training.metrics import MetricAccumulator, class_metrics


def test_an_epoch_is_summed_over_batches_of_any_size() -> None:
    accumulator = MetricAccumulator(3, evaluating=True)
    logits = torch.tensor([[9.0, 1, 0], [0, 9, 1], [0, 9, 1], [1, 0, 9], [9, 0, 1]])
    labels = torch.tensor([0, 1, 2, 2, 1])
    for rows in (slice(0, 4), slice(4, 5)):
        accumulator.add(
            torch.tensor(float(len(labels[rows]))), logits[rows], labels[rows], len(labels[rows])
        )
    seen = accumulator.all_reduce()
    assert (seen.count, seen.hits, seen.top5, seen.loss) == (5, 3, 5, 5.0)
    assert seen.confusion == [[0, 0, 1], [1, 0, 1], [1, 1, 1], [2, 1, 1], [2, 2, 1]]
    assert math.isclose(seen.acc1, 0.6) and seen.mean_loss == 1.0


def test_the_time_of_an_epoch_ends_when_the_device_has_done_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy to the host that takes a while stands in for a device that is behind."""
    copy = torch.Tensor.cpu

    def wait(values: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return copy(values)

    accumulator = MetricAccumulator(2)
    accumulator.add(torch.tensor(1.0), torch.zeros(1, 2), torch.tensor([0]), 1)
    monkeypatch.setattr(torch.Tensor, "cpu", wait)
    assert accumulator.all_reduce().seconds >= 0.05


def test_steps_leave_no_tensors_among_those_that_are_freed() -> None:
    def tensors() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    accumulator, before = MetricAccumulator(2), tensors()
    for _ in range(2000):
        accumulator.add(torch.tensor(1.0), torch.zeros(1, 2), torch.tensor([0]), 1)
    assert tensors() - before < 10
    assert accumulator.recent_loss().item() == 1.0
    assert (accumulator.all_reduce().loss, accumulator.all_reduce().hits) == (2000.0, 2000)


def test_the_first_step_whose_loss_is_not_finite_is_known() -> None:
    accumulator = MetricAccumulator(2)
    for loss in (1.0, float("inf"), float("nan")):
        accumulator.add(torch.tensor(loss), torch.zeros(1, 2), torch.tensor([0]), 1)
    assert accumulator.all_reduce().bad_step == 1


def test_figures_by_class_are_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    true, said = [0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 0, 2]
    matrix = confusion_matrix(true, said)
    pairs = [[k, j, int(matrix[k, j])] for k, j in zip(*matrix.nonzero(), strict=True)]
    rows = class_metrics(pairs, ("a", "b", "c"))
    precision, recall, f1, count = precision_recall_fscore_support(true, said)
    for k, row in enumerate(rows):
        ours = [row["precision"], row["recall"], row["f1"], row["count"]]
        assert ours == pytest.approx([precision[k], recall[k], f1[k], count[k]])


def test_ten_thousand_classes_take_memory_of_the_images_and_not_of_the_square() -> None:
    classes, images = 10_000, 64
    accumulator = MetricAccumulator(classes, evaluating=True)
    tracemalloc.start()
    for start in range(0, 20_000, images):
        labels = torch.arange(start, start + images) % classes
        accumulator.add(torch.tensor(1.0), F.one_hot(labels, classes).float(), labels, images)
    seen = accumulator.all_reduce()
    rows = class_metrics(seen.confusion, tuple(map(str, range(classes))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.hits == seen.count == sum(row["count"] for row in rows)
    assert len(seen.confusion) == classes and peak < 50e6
