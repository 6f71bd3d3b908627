"""The confidence interval of a mean average precision."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from raycnn.training.map_interval import map_interval
from raycnn.training.multi_label import multi_label_scores

Sample = tuple[NDArray[np.uint8], NDArray[np.float32]]
SHARES, GAPS = np.array([0.1, 0.3, 0.5]), np.array([1.0, 1.5, 2.0])


def sampled(generator: np.random.Generator, images: int) -> Sample:
    """Labels and scores of three classes, whose positives score a gap higher on average."""
    labels = (generator.random((images, 3)) < SHARES).astype(np.uint8)
    scores = generator.normal(size=labels.shape) + GAPS * labels
    return labels, (1 / (1 + np.exp(-scores))).astype(np.float32)


def means(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> float:
    return multi_label_scores(labels, probabilities).means["map"]


def resampled(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> Iterator[float]:
    generator = np.random.default_rng(1)
    for _ in range(400):
        rows = generator.integers(len(labels), size=len(labels))
        yield means(labels[rows], probabilities[rows])


def test_the_interval_covers_the_true_map_as_often_as_it_says() -> None:
    true = means(*sampled(np.random.default_rng(0), 200_000))
    intervals = [map_interval(*sampled(np.random.default_rng(seed), 300)) for seed in range(1, 201)]
    covered = np.mean([low <= true <= high for low, high in intervals])
    assert 0.9 <= covered <= 0.98
    assert 0.03 < np.mean([high - low for low, high in intervals]) < 0.15


def test_the_interval_is_that_of_resampling_by_hand() -> None:
    """With ties, a class of three images, which some resamples lack, and one without any."""
    labels, probabilities = sampled(np.random.default_rng(3), 80)
    labels[:, 0] = 0
    labels[:3, 0] = 1
    none = np.zeros((80, 1))
    labels = np.hstack([labels, none]).astype(np.uint8)
    probabilities = np.hstack([probabilities, none]).round(1).astype(np.float32)
    expected = np.percentile([*resampled(labels, probabilities)], (2.5, 97.5))
    assert map_interval(labels, probabilities) == pytest.approx(expected, abs=0.03)


def test_the_interval_depends_on_nothing_but_the_seed() -> None:
    sample = sampled(np.random.default_rng(4), 100)
    assert map_interval(*sample) == map_interval(*sample) != map_interval(*sample, seed=1)


def test_a_split_without_any_class_tells_nothing() -> None:
    assert map_interval(np.zeros((5, 2), np.uint8), np.zeros((5, 2), np.float32)) == (0.0, 1.0)
