"""Draw images by class: the validation split, and a subset. A function of the labels and a seed."""

import numpy as np
from numpy.typing import NDArray

from raycnn import seeds

Indices = NDArray[np.int64]


def draw(labels: NDArray[np.integer], count: int, seed: int) -> Indices:
    """`count` indices in rising order, every class in proportion (largest remainders first)."""
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(int)
    short = count - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1

    key = seeds.words(seed, np.arange(len(labels)))
    chosen = []
    for label, size in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(key[members], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
