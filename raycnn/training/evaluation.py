"""Evaluation of a network on a split: its metrics and its predictions."""

import torch
from torch import nn

from raycnn.config.schema import Train
from raycnn.data.label_arrays import is_multi_label
from raycnn.data.loader import Loader
from raycnn.runtime.timer import PassTimer
from raycnn.training.metrics import EpochMetrics, build_metric_accumulator
from raycnn.training.predictions import PredictionAccumulator, SplitPredictions
from raycnn.training.step import forward, split_micro_batches
from raycnn.training.tta import with_tta


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    settings: Train,
    classes: int,
    micro_batch: int,
    predictions: PredictionAccumulator | None = None,
) -> EpochMetrics:
    """Return the metrics over all workers, evaluating every image of the loader once.

    The loss is the plain cross-entropy: with the label smoothing of training it could not be
    compared between the stages of a job, or between jobs. A forward pass has at most `micro_batch`
    images. The test-time augmentation of the settings applies. All logits are added to
    `predictions`.
    """
    settings = settings.model_copy(update={"label_smoothing": 0.0})
    model = with_tta(model.eval(), settings.tta)
    multi_label = is_multi_label(loader.labels)
    accumulator = build_metric_accumulator(classes, multi_label, evaluating=True)
    timer = PassTimer(loader.device)
    batches = timer.waiting(loader.epoch(0))  # unshuffled: every epoch is the same
    for batch_index, batch in enumerate(batches):
        # A worker without a share of the batch has one image that does not count.
        for part in split_micro_batches(batch, micro_batch) if batch.count else ():
            with timer.timing(part.count):
                logits, loss = forward(model, part, settings)
            accumulator.add(loss, logits, part.labels, part.count)
            if predictions:
                predictions.add(batch_index * loader.batch_size + part.first, logits)
    return accumulator.all_reduce().with_times(timer)


def predict_split(
    model: nn.Module, loader: Loader, settings: Train, classes: int, micro_batch: int
) -> tuple[EpochMetrics, SplitPredictions | None]:
    """Return the metrics of a split and, on rank 0, the prediction for each of its images."""
    predictions = PredictionAccumulator(loader, classes)
    metrics = evaluate(model, loader, settings, classes, micro_batch, predictions)
    return metrics, predictions.gather(loader.device)
