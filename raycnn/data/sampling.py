"""Draw images by class: a validation split, a subset, a balanced epoch. Functions of a seed."""

import numpy as np
from numpy.typing import NDArray

from raycnn.runtime import rng

Indices = NDArray[np.int64]


def stratified_sample(labels: NDArray[np.integer], count: int, seed: int) -> Indices:
    """`count` indices in rising order, every class in proportion (largest remainders first)."""
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(int)
    short = count - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1

    key = rng.words(seed, np.arange(len(labels)))
    chosen = []
    for label, size in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(key[members], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def stratified_fold(labels: NDArray[np.integer], fold: int, folds: int, seed: int) -> Indices:
    """Return the indices of one of `folds` parts, in rising order; every class is spread evenly.

    The parts of one seed are disjoint, and together hold every index.
    """
    order = np.lexsort((rng.words(seed, np.arange(len(labels))), labels))
    return np.sort(order[fold::folds])


def balanced_sample(labels: NDArray[np.integer], seed: int, epoch: int) -> tuple[Indices, Indices]:
    """As many indices as there are labels, every class equally often, or once more by chance.

    Also (n,) how often each was drawn before: an image comes again when all of its class have come.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = np.full(len(classes), len(labels) // len(classes))
    quota[np.argsort(rng.words(seed, epoch, classes))[: len(labels) % len(classes)]] += 1
    picked, again = [], []
    for label, size, due in zip(classes, sizes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        times = np.arange(-(-due // size))
        keys = rng.words(seed, epoch, times[:, None], members[None, :])
        picked.append(members[np.argsort(keys, axis=1, kind="stable")].ravel()[:due])
        again.append(np.repeat(times, size)[:due])
    return np.concatenate(picked), np.concatenate(again)
