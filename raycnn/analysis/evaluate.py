"""Evaluate predictions: metrics overall and by class, calibration, mistakes and label issues."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycnn.analysis import predictions
from raycnn.analysis.predictions import Predictions, from_training
from raycnn.data.splits import open_splits
from raycnn.errors import DataError
from raycnn.runs.directory import Run
from raycnn.runtime.device import find
from raycnn.training import checkpoint, metrics
from raycnn.training.loop import fresh_state, predict_split
from raycnn.training.metrics import TOP, Confusion, confidence_interval
from raycnn.training.multi_label import multi_label_scores, named_rows
from raycnn.training.predictions import SplitPredictions

BINS = 15  # of a reliability diagram, as in Guo et al.
CHUNK = 2**22  # probabilities processed at once
POINTS = 200  # at most so many points of a curve

Array = NDArray[Any]


def evaluate_run(
    run: Run, split: str, weights: str = "best", device: str | None = None, root: str | None = None
) -> dict[str, Any]:
    """Return metrics of a split: `{split: {...}, "epoch", "confusion", "per_class"}`.

    They are computed from the run's stored predictions, or if it has none for these weights and
    this split, from new ones, which are stored for the best weights. A given `device` or `root`
    always causes new predictions. Multi-label there is no confusion matrix. Raises DataError where
    the data differ from the run's.
    """
    best = weights == "best"
    found = stored_predictions(run) if best else None
    if not found or split not in found.splits or device or root:
        made = predict_run(run, split, weights, device or "auto", root)
        if best:
            found = _keep(run, made, found)
        else:
            found = made
    own, classes = found.splits[split], found.classes
    return {
        split: split_metrics(own),
        "epoch": found.epoch,
        "confusion": [] if own.multi_label else confusion_pairs(own, len(classes)),
        "per_class": per_class(own, classes),
    }


def stored_predictions(run: Run) -> Predictions | None:
    """Return the run's stored predictions of its best weights, or None."""
    try:
        found = predictions.read_predictions(run.folder / predictions.FILE)
    except DataError:
        return None
    return found if found.epoch == checkpoint.read_state(run.weights("best"))["epoch"] else None


def predict_run(run: Run, split: str, weights: str, device: str, root: str | None) -> Predictions:
    """Predict every image of a split once, with a checkpoint of the run.

    Raises DataError where the data differ from those that the run was trained on.
    """
    job = run.job()
    if root:
        job = job.change({"data.root": root})
    chosen = find(device).select(0)
    splits = open_splits(job)
    state = fresh_state(job, splits, chosen)
    path = run.weights(weights)
    saved = checkpoint.read_state(path)
    if saved["about"]["data"] != state.metadata["data"]:
        raise DataError("the images or labels are not the ones this run was trained on")
    checkpoint.load_weights(state.model, path)
    loader = splits.loader(split, job, chosen, training=False)
    micro_batch = job.train.micro_batch or job.train.batch_size
    _, own = predict_split(state.model, loader, job.train, len(splits.classes), micro_batch)
    assert own, "one process is rank 0"
    return from_training(splits, saved["epoch"], {split: own})


def _keep(run: Run, made: Predictions, before: Predictions | None) -> Predictions:
    """Merge new predictions with those of other splits, and write them if that is possible."""
    if before:
        files = before.files | made.files
        made = Predictions(made.classes, made.epoch, before.splits | made.splits, files)
    try:
        predictions.write_predictions(run.folder / predictions.FILE, made)
        run.flush()
    except OSError:
        pass  # a run on a read-only disk can be evaluated too
    return made


def split_metrics(own: SplitPredictions) -> dict[str, Any]:
    """Return accuracy with its 95 % interval, cross-entropy (no smoothing), ECE and the count.

    The cross-entropy is None where not all probabilities were stored. Multi-label these are mAP,
    micro and macro F1, binary cross-entropy and the count.
    """
    if own.multi_label:
        means = multi_label_scores(own.labels, own.probabilities).means
        return means | {"loss": _binary_loss(own), "count": len(own)}
    hits, count = int((own.predicted == own.labels).sum()), len(own)
    top5 = sum(int((top == labels[:, None]).sum()) for top, labels in _top5(own))
    loss = None
    if own.classes is None and count:
        loss = float(-np.log(np.maximum(label_probability(own), np.finfo(np.float32).tiny)).mean())
    return {
        "acc1": hits / max(1, count),
        "interval95": list(confidence_interval(hits, count)),
        "acc5": top5 / max(1, count),
        "loss": loss,
        "ece": calibration(own).ece,
        "count": count,
    }


def _binary_loss(own: SplitPredictions) -> float:
    """Return the mean binary cross-entropy of multi-label predictions."""
    right = np.where(own.labels == 1, own.probabilities, 1 - own.probabilities)
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def _top5(own: SplitPredictions) -> Iterator[tuple[Array, Array]]:
    for rows in _chunks(own):
        if own.classes is not None:
            yield own.classes[rows, :TOP], own.labels[rows]
        else:
            part = own.probabilities[rows]
            top = min(TOP, part.shape[1])
            yield np.argpartition(-part, top - 1, 1)[:, :top], own.labels[rows]


def _chunks(own: SplitPredictions) -> Iterator[slice]:
    step = max(1, CHUNK // own.probabilities.shape[1])
    return (slice(start, start + step) for start in range(0, len(own), step))


def confidence(own: SplitPredictions) -> NDArray[np.float32]:
    """Return the largest probability of each image (N,)."""
    return own.probabilities.max(1, initial=0)


def label_probability(own: SplitPredictions) -> NDArray[np.float32]:
    """Return the probability of each image's label (N,): 0 where it was not stored."""
    if own.classes is None:
        return np.take_along_axis(own.probabilities, own.labels[:, None], 1)[:, 0]
    return np.where(own.classes == own.labels[:, None], own.probabilities, 0).sum(1)


def confusion_pairs(own: SplitPredictions, classes: int) -> Confusion:
    """Return [label, prediction, count] of the pairs that occur, in ascending order."""
    pairs, counts = np.unique(own.labels * classes + own.predicted, return_counts=True)
    return np.stack([pairs // classes, pairs % classes, counts], 1).tolist()


def confusion_matrix(own: SplitPredictions, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix (K, K), by label and prediction; meant for few classes."""
    pairs = own.labels * classes + own.predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def most_confused(own: SplitPredictions, classes: int, most: int) -> Confusion:
    """Return [label, prediction, count] of the most frequent mistakes, the most frequent first."""
    wrong = [row for row in confusion_pairs(own, classes) if row[0] != row[1]]
    return sorted(wrong, key=lambda row: -row[2])[:most]


def per_class(own: SplitPredictions, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return count, precision, recall and F1 of every class, and the 95 % interval of recall.

    Multi-label, average precision as well.
    """
    if own.multi_label:
        rows = named_rows(multi_label_scores(own.labels, own.probabilities), classes)
    else:
        rows = metrics.class_metrics(confusion_pairs(own, len(classes)), classes)
    for row in rows:
        hits = round(row["recall"] * row["count"])
        row["recall_interval95"] = list(confidence_interval(hits, row["count"]))
    return rows


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """(BINS,): the mean confidence of each bin; NaN where it is empty."""
    accuracy: NDArray[np.float64]
    ece: float
    """Expected calibration error: the mean gap between the two, weighted by the counts."""


def calibration(own: SplitPredictions, bins: int = BINS) -> Calibration:
    """Compare confidence with accuracy (Guo et al., ICML 2017, arXiv:1706.04599, section 2)."""
    sure = confidence(own).astype(np.float64)
    hit = own.predicted == own.labels
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, sure, bins) / counts
        accuracy = np.bincount(place, hit, bins) / counts
    gaps = np.nansum(np.abs(mean - accuracy) * counts)
    return Calibration(counts, mean, accuracy, float(gaps / max(1, len(own))))


def risk_coverage(own: SplitPredictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coverages, and the accuracy on that share of the images, the most confident first.

    Geifman and El-Yaniv, NeurIPS 2017, arXiv:1705.08500, section 2. At most POINTS points.
    """
    order = np.argsort(-confidence(own), kind="stable")
    hits = np.cumsum((own.predicted == own.labels)[order])
    count = len(own)
    at = np.unique(np.linspace(1, count, min(POINTS, count)).astype(np.int64))
    return at / count, hits[at - 1] / at


def worst_mistakes(own: SplitPredictions, most: int) -> NDArray[np.int64]:
    """Return the indices of wrong predictions, the most confident first."""
    wrong = np.flatnonzero(own.predicted != own.labels)
    return wrong[np.argsort(-confidence(own)[wrong], kind="stable")][:most]


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is likely wrong."""

    index: int
    suggested: int
    label_probability: float
    probability: float
    """The probability of the suggested class."""


def label_issues(own: SplitPredictions, classes: int) -> list[LabelIssue]:
    """Find labels that are likely wrong, the likeliest first: confident learning.

    An image counts as class j if its p(j) reaches the mean p(j) of all images labeled j, and among
    several such classes as the most probable. It is an issue if that differs from its label; issues
    are ranked by p(label), the self-confidence. Northcutt et al., JAIR 70 (2021), pages 1373 to
    1411, sections 3.1 and 3.2. The network must not have been trained on these images.
    """
    given = label_probability(own)
    labeled = np.bincount(own.labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        least = np.bincount(own.labels, given, classes) / labeled
    least = np.nan_to_num(least, nan=np.inf).astype(np.float32)
    found = []
    for rows in _chunks(own):
        part = own.probabilities[rows]
        of = np.arange(classes)[None] if own.classes is None else own.classes[rows]
        reached = np.where(part >= least[of], part, -1)
        place = reached.argmax(1)
        largest = np.take_along_axis(reached, place[:, None], 1)[:, 0]
        suggested = np.take_along_axis(np.broadcast_to(of, part.shape), place[:, None], 1)[:, 0]
        for i in np.flatnonzero((largest >= 0) & (suggested != own.labels[rows])):
            index = rows.start + int(i)
            found.append(
                LabelIssue(index, int(suggested[i]), float(given[index]), float(largest[i]))
            )
    return sorted(found, key=lambda issue: (issue.label_probability, issue.index))
