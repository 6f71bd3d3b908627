"""Evaluate predictions: metrics overall and by class, calibration, mistakes and label issues."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.analysis import predictions_file
from raycnn.analysis.predictions_file import Predictions, from_training
from raycnn.config.schema import JobSpec
from raycnn.data.images.fingerprint import may_be_same
from raycnn.data.sources.base import SPLITS
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import DataError, EnvironmentUnavailable, SpecError, unknown
from raycnn.runs.directory import Run
from raycnn.runtime.device import find
from raycnn.training import checkpoint, checkpoint_folder, metrics
from raycnn.training.callbacks import CallbackList
from raycnn.training.evaluation import predict_split
from raycnn.training.map_interval import map_interval
from raycnn.training.metrics import TOP, Confusion
from raycnn.training.micro_batch import find_micro_batch_size, micro_batch_size
from raycnn.training.multi_label import multi_label_scores, named_rows
from raycnn.training.predictions import SplitPredictions
from raycnn.training.setup import new_training_state
from raycnn.training.uncertainty import confidence_interval

BINS = 15  # number of bins of a reliability diagram, as in Guo et al.
CHUNK = 2**22  # probabilities processed at once
MAX_POINTS = 200  # points of a curve
SMALLEST = np.finfo(np.float32).tiny  # a probability of 0 would give an infinite loss

Array = NDArray[Any]


def evaluate_run(
    run: Run, split: str, weights: str = "best", device: str | None = None, root: str | None = None
) -> dict[str, Any]:
    """Return metrics of a split: `{split: {...}, "epoch", "confusion", "per_class"}`.

    They are computed from the run's stored predictions, or if it has none for these weights and
    this split, from new ones, which are stored for the best weights. A given `device` or `root`
    always causes new predictions. Multi-label data has no confusion matrix. Raises SpecError for an
    unknown split, DataError if the data differ from the run's.
    """
    if split not in SPLITS:
        raise SpecError(unknown("split", split, SPLITS), "split")
    best = weights == "best"
    stored = stored_predictions(run) if best else None
    if not stored or split not in stored.splits or device or root:
        new = predict_run(run, split, weights, device or "auto", root)
        stored = _store(run, new, stored) if best else new
    predictions, classes = stored.splits[split], stored.classes
    return {
        split: split_metrics(predictions),
        "epoch": stored.epoch,
        "confusion": [] if predictions.multi_label else confusion_pairs(predictions, len(classes)),
        "per_class": per_class(predictions, classes),
    }


def stored_predictions(run: Run) -> Predictions | None:
    """Return the run's stored predictions; None if they are missing or not of the best weights."""
    try:
        stored = predictions_file.read_predictions(run.folder / predictions_file.FILE)
    except DataError:
        return None
    best_epoch = checkpoint_folder.read_state(run.weights("best"))["epoch"]
    return stored if stored.epoch == best_epoch else None


def open_run_data(run: Run, saved: dict[str, Any], root: str | None) -> tuple[JobSpec, Splits]:
    """Return the job of a run, with another data root if one is given, and its data.

    Raises DataError if the data is missing, or differs from what the checkpoint with the state
    `saved` was trained on.
    """
    job = run.job()
    if root:
        job = job.change({"data.root": root})
    splits = open_splits(job)
    if not may_be_same(saved["about"]["data"], splits.cache.fingerprint):
        raise DataError("the images or labels are not the ones this run was trained on")
    return job, splits


def predict_run(run: Run, split: str, weights: str, device: str, root: str | None) -> Predictions:
    """Predict every image of a split once, with a checkpoint of the run.

    Raises DataError if the data differ from those that the run was trained on, and SpecError for a
    split without images.
    """
    chosen = find(device).select(0)
    path = run.weights(weights)
    saved = checkpoint_folder.read_state(path)
    job, splits = open_run_data(run, saved, root)
    if not len(splits.labels(split)):
        raise SpecError(f"{run.name} has no {split} images: none were held out")
    state = new_training_state(job, splits, chosen)
    checkpoint.load_weights(state.model, path)
    loader = splits.loader(split, job, chosen, training=False)
    found: SplitPredictions | None = None

    def predict(size: int) -> None:
        nonlocal found
        _, found = predict_split(state.model, loader, job.train, len(splits.classes), size)

    # The batch of the job may have been divided among many devices.
    find_micro_batch_size(predict, micro_batch_size(job.train), CallbackList())
    assert found, "one process is rank 0"
    return from_training(splits, saved["epoch"], {split: found})


def _store(run: Run, new: Predictions, stored: Predictions | None) -> Predictions:
    """Merge new predictions with those of other splits, and write them if that is possible."""
    if stored:
        files = stored.files | new.files
        new = Predictions(new.classes, new.epoch, stored.splits | new.splits, files)
    try:
        predictions_file.write_predictions(run.folder / predictions_file.FILE, new)
        run.flush()
    except (OSError, EnvironmentUnavailable):
        pass  # a run on a read-only disk, or at a URI that may only be read, can be evaluated too
    return new


def split_metrics(predictions: SplitPredictions) -> dict[str, Any]:
    """Return accuracy with its 95 % interval, cross-entropy (no smoothing), ECE and the count.

    The cross-entropy is None if not all probabilities were stored. Multi-label these are mAP with
    its interval, micro and macro F1, binary cross-entropy and the count.
    """
    if predictions.multi_label:
        means = multi_label_scores(predictions.labels, predictions.probabilities).means
        interval = map_interval(predictions.labels, predictions.probabilities)
        counted = {"loss": _binary_loss(predictions), "count": len(predictions)}
        return means | {"interval95": list(interval)} | counted
    hits, count = int((predictions.predicted == predictions.labels).sum()), len(predictions)
    top5 = sum(int((top == labels[:, None]).sum()) for top, labels in _top5(predictions))
    loss = None
    if predictions.classes is None and count:
        loss = float(-np.log(np.maximum(label_probability(predictions), SMALLEST)).mean())
    return {
        "acc1": hits / max(1, count),
        "interval95": list(confidence_interval(hits, count)),
        "acc5": top5 / max(1, count),
        "loss": loss,
        "ece": calibration(predictions).ece,
        "count": count,
    }


def _binary_loss(predictions: SplitPredictions) -> float:
    """Return the mean binary cross-entropy of multi-label predictions."""
    likelihoods = np.where(
        predictions.labels == 1, predictions.probabilities, 1 - predictions.probabilities
    )
    return float(-np.log(np.maximum(likelihoods, SMALLEST)).mean())


def _top5(predictions: SplitPredictions) -> Iterator[tuple[Array, Array]]:
    for rows in _chunks(predictions):
        if predictions.classes is not None:
            yield predictions.classes[rows, :TOP], predictions.labels[rows]
        else:
            part = predictions.probabilities[rows]
            top = min(TOP, part.shape[1])
            yield np.argpartition(-part, top - 1, 1)[:, :top], predictions.labels[rows]


def _chunks(predictions: SplitPredictions) -> Iterator[slice]:
    step = max(1, CHUNK // predictions.probabilities.shape[1])
    return (slice(start, start + step) for start in range(0, len(predictions), step))


def confidence(predictions: SplitPredictions) -> NDArray[np.float32]:
    """Return the largest probability of each image (N,)."""
    return predictions.probabilities.max(1, initial=0)


def label_probability(predictions: SplitPredictions) -> NDArray[np.float32]:
    """Return the probability of each image's label (N,): 0 where it was not stored."""
    if predictions.classes is None:
        return np.take_along_axis(predictions.probabilities, predictions.labels[:, None], 1)[:, 0]
    is_label = predictions.classes == predictions.labels[:, None]
    return np.where(is_label, predictions.probabilities, 0).sum(1)


def confusion_pairs(predictions: SplitPredictions, classes: int) -> Confusion:
    """Return [label, prediction, count] of the pairs that occur, in ascending order."""
    index = predictions.labels * classes + predictions.predicted
    pairs, counts = np.unique(index, return_counts=True)
    return np.stack([pairs // classes, pairs % classes, counts], 1).tolist()


def confusion_matrix(predictions: SplitPredictions, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix (K, K), by label and prediction; meant for few classes."""
    pairs = predictions.labels * classes + predictions.predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def most_confused(predictions: SplitPredictions, classes: int, limit: int) -> Confusion:
    """Return [label, prediction, count] of the most frequent mistakes, the most frequent first."""
    wrong = [row for row in confusion_pairs(predictions, classes) if row[0] != row[1]]
    return sorted(wrong, key=lambda row: -row[2])[:limit]


def per_class(predictions: SplitPredictions, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return count, precision, recall and F1 of every class, and the 95 % interval of recall.

    Multi-label, average precision as well.
    """
    if predictions.multi_label:
        scores = multi_label_scores(predictions.labels, predictions.probabilities)
        rows = named_rows(scores, classes)
    else:
        rows = metrics.class_metrics(confusion_pairs(predictions, len(classes)), classes)
    for row in rows:
        hits = round(row["recall"] * row["count"])
        row["recall_interval95"] = list(confidence_interval(hits, row["count"]))
    return rows


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """(BINS,): the mean confidence of each bin; NaN if it is empty."""
    accuracy: NDArray[np.float64]
    ece: float
    """Expected calibration error: the mean gap between the two, weighted by the counts."""


def calibration(predictions: SplitPredictions, bins: int = BINS) -> Calibration:
    """Compare confidence with accuracy (Guo et al., ICML 2017, arXiv:1706.04599, section 2)."""
    confidences = confidence(predictions).astype(np.float64)
    hit = predictions.predicted == predictions.labels
    bin_index = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_index, confidences, bins) / counts
        accuracy = np.bincount(bin_index, hit, bins) / counts
    gaps = np.nansum(np.abs(mean - accuracy) * counts)
    return Calibration(counts, mean, accuracy, float(gaps / max(1, len(predictions))))


def risk_coverage(predictions: SplitPredictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coverages, and the accuracy on that share of the images, the most confident first.

    Geifman and El-Yaniv, NeurIPS 2017, arXiv:1705.08500, section 2. At most MAX_POINTS points.
    """
    order = np.argsort(-confidence(predictions), kind="stable")
    hits = np.cumsum((predictions.predicted == predictions.labels)[order])
    count = len(predictions)
    covered = np.unique(np.linspace(1, count, min(MAX_POINTS, count)).astype(np.int64))
    return covered / count, hits[covered - 1] / covered


def worst_mistakes(predictions: SplitPredictions, limit: int) -> NDArray[np.int64]:
    """Return the indices of wrong predictions, the most confident first."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return wrong[np.argsort(-confidence(predictions)[wrong], kind="stable")][:limit]


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is likely wrong."""

    index: int
    suggested: int
    label_probability: float
    probability: float
    """The probability of the suggested class."""


def label_issues(predictions: SplitPredictions, classes: int) -> list[LabelIssue]:
    """Find labels that are likely wrong, the likeliest first: confident learning.

    An image counts as class j if its p(j) reaches the mean p(j) of all images labeled j, and among
    several such classes as the most probable. It is an issue if that differs from its label; issues
    are ranked by p(label), the self-confidence. Northcutt et al., JAIR 70 (2021), pages 1373 to
    1411, sections 3.1 and 3.2. The network must not have been trained on these images.
    """
    label_probabilities = label_probability(predictions)
    labeled = np.bincount(predictions.labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        thresholds = np.bincount(predictions.labels, label_probabilities, classes) / labeled
    thresholds = np.nan_to_num(thresholds, nan=np.inf).astype(np.float32)
    issues = []
    for rows in _chunks(predictions):
        part = predictions.probabilities[rows]
        all_classes = np.arange(classes)[None]
        columns = all_classes if predictions.classes is None else predictions.classes[rows]
        reached = np.where(part >= thresholds[columns], part, -1)
        best = reached.argmax(1)[:, None]
        largest = np.take_along_axis(reached, best, 1)[:, 0]
        suggested = np.take_along_axis(np.broadcast_to(columns, part.shape), best, 1)[:, 0]
        for i in np.flatnonzero((largest >= 0) & (suggested != predictions.labels[rows])):
            index = rows.start + int(i)
            issues.append(
                LabelIssue(
                    index, int(suggested[i]), float(label_probabilities[index]), float(largest[i])
                )
            )
    return sorted(issues, key=lambda issue: (issue.label_probability, issue.index))
