"""Multi-label metrics: average precision and F1 of each class, and their means."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5  # an image is predicted to have the classes of at least this probability


@dataclass(frozen=True)
class MultiLabelScores:
    """The multi-label metrics of a split: of each class, and their means."""

    means: dict[str, float]
    """`map`: the mean average precision; `f1`: micro F1; `f1_macro`: the mean F1."""
    per_class: list[dict[str, Any]]
    """For each class: the number of images that have it and of images predicted to have it, average
    precision (None if no image has it), precision, recall and F1."""


def named_rows(scores: MultiLabelScores, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the metrics of each class, with its name."""
    return [{"class": n} | row for n, row in zip(classes, scores.per_class, strict=True)]


def multi_label_scores(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32]
) -> MultiLabelScores:
    """Return the metrics of labels and probabilities (N, K).

    The means over the classes leave out those that no image has.
    """
    positive = probabilities >= THRESHOLD
    true, predicted = labels.sum(0, dtype=np.int64), positive.sum(0)
    hits = (labels * positive).sum(0, dtype=np.int64)
    f1 = 2 * hits / np.maximum(1, true + predicted)
    occur = true > 0
    precisions = _average_precisions(labels, probabilities, occur)
    rows = [
        {
            "count": int(true[k]),
            "predicted": int(predicted[k]),
            "ap": float(precisions[k]) if occur[k] else None,
            "precision": float(hits[k] / max(1, predicted[k])),
            "recall": float(hits[k] / max(1, true[k])),
            "f1": float(f1[k]),
        }
        for k in range(len(true))
    ]
    classes = max(1, int(occur.sum()))
    means = {
        "map": float(precisions.sum() / classes),
        "f1": float(2 * hits.sum() / max(1, int((true + predicted).sum()))),
        "f1_macro": float(f1[occur].sum() / classes),
    }
    return MultiLabelScores(means, rows)


def _average_precisions(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], occur: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the average precision of each class that occurs (K,), and 0 for the others."""
    from sklearn.metrics import average_precision_score  # slow to import

    precisions = np.zeros(len(occur))
    if occur.any():
        finite = np.nan_to_num(probabilities[:, occur])  # a diverged network has its own error
        precisions[occur] = average_precision_score(labels[:, occur], finite, average=None)
    return precisions
