"""The confidence interval of a mean average precision, by the bootstrap over images.

N images, K classes, R resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
MIN_RESAMPLES = 200  # for splits of so many labels that more would take minutes
MAX_WORK = 2**32  # labels times resamples, where more than MIN_RESAMPLES
BLOCK = 2**20  # images times resamples at once
PERCENTILES = (2.5, 97.5)


def map_interval(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mAP of labels and probabilities (N, K).

    It is the percentile interval of resamples of the images, drawn with replacement (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). As in the mAP itself, classes
    that no image of a resample has are left out of its mean. If a class has only a few images, the
    mAP of a sample is too high on average, and so is the interval.
    """
    count = len(labels)
    rankings = [_rank(labels[:, k], probabilities[:, k]) for k in np.flatnonzero(labels.any(0))]
    if not rankings:
        return 0.0, 1.0
    generator = np.random.default_rng(seed)
    resamples = min(RESAMPLES, max(MIN_RESAMPLES, MAX_WORK // labels.size))
    block = min(resamples, max(1, BLOCK // count))
    means = []
    for start in range(0, resamples, block):
        weights = _resample(generator, count, min(block, resamples - start))
        pairs = [ranking.average_precision(weights) for ranking in rankings]
        precisions, occur = zip(*pairs, strict=True)
        means.append(np.sum(precisions, 0) / np.maximum(1, np.sum(occur, 0)))
    low, high = np.percentile(np.concatenate(means), PERCENTILES)
    return float(low), float(high)


@dataclass(frozen=True)
class _Ranking:
    """The images of a class by falling probability, cut at those probabilities of its positives."""

    everyone: Any
    """Sparse (T, N): 1 for the images from one of the T probabilities up to the one before it."""
    positives: Any
    """The same, of the images that have the class."""

    def average_precision(
        self, weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the average precision (R,) for weights of the images (N, R), and if there is one.

        It is the precision at each probability, weighted by the increase in recall; without an
        image that has the class it is 0.
        """
        new = self.positives @ weights
        found = np.cumsum(new, 0)
        precision = found / np.maximum(1, np.cumsum(self.everyone @ weights, 0))
        return (new * precision).sum(0) / np.maximum(1, found[-1]), found[-1] > 0


def _rank(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> _Ranking:
    from scipy.sparse import csr_array  # slow to import

    order = np.argsort(-probabilities, kind="stable")
    ranked, positive = probabilities[order], labels[order] > 0
    tie = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))
    has_positive = np.bincount(tie, positive) > 0
    part: NDArray[np.int64] = (np.cumsum(has_positive) - has_positive)[tie]
    parts = int(has_positive.sum())

    def indicator(chosen: NDArray[np.bool_]) -> Any:
        columns = order[chosen]
        ones = np.ones(len(columns), np.float32)
        return csr_array((ones, (part[chosen], columns)), shape=(parts, len(labels)))

    return _Ranking(indicator(np.less(part, parts)), indicator(positive))


def _resample(generator: np.random.Generator, images: int, resamples: int) -> NDArray[np.float32]:
    """Return how often each image was drawn in each resample (N, R)."""
    drawn = generator.integers(images, size=(resamples, images)) * resamples
    drawn += np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=images * resamples)
    return counts.reshape(images, resamples).astype(np.float32)
