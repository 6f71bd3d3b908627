"""Stratified and balanced sampling by class; every sample is a function of its seed."""

import numpy as np
from numpy.typing import NDArray

from raycnn.runtime import rng

Indices = NDArray[np.int64]


def stratified_sample(
    labels: NDArray[np.integer], count: int, seed: int, keep_one: bool = False
) -> Indices:
    """Return `count` indices in ascending order, each class in proportion (largest remainder).

    With `keep_one` at least one image of every class is left unsampled, so there may be fewer.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    limit = sizes - 1 if keep_one else sizes
    exact = sizes * (count / max(1, len(labels)))
    quota = np.minimum(np.floor(exact).astype(int), limit)
    missing = count - int(quota.sum())
    first = np.argsort(quota - exact, kind="stable")
    first = first[quota[first] < limit[first]]
    quota[first[:missing]] += 1

    order = np.lexsort((rng.random_bits(seed, np.arange(len(labels))), labels))
    ends = np.cumsum(sizes)
    chosen = [
        order[end - size : end - size + n] for end, size, n in zip(ends, sizes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def stratified_fold(labels: NDArray[np.integer], fold: int, folds: int, seed: int) -> Indices:
    """Return the indices of fold number `fold` of `folds`, ascending, stratified by class.

    The folds of one seed are disjoint and cover every index.
    """
    order = np.lexsort((rng.random_bits(seed, np.arange(len(labels))), labels))
    return np.sort(order[fold::folds])


def balanced_sample(labels: NDArray[np.integer], seed: int, epoch: int) -> tuple[Indices, Indices]:
    """Return n indices for n labels in which every class is equally frequent, and repeat counts.

    If n is not a multiple of the number of classes, random classes have one more. The second array
    (n,) counts how often each image was sampled before: an image repeats only when all images of
    its class were sampled.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = np.full(len(classes), len(labels) // len(classes))
    quota[np.argsort(rng.random_bits(seed, epoch, classes))[: len(labels) % len(classes)]] += 1
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    sampled, repeats = [], []
    for members, size, count in zip(by_class, sizes, quota, strict=True):
        rounds = np.arange(-(-count // size))
        keys = rng.random_bits(seed, epoch, rounds[:, None], members[None, :])
        sampled.append(members[np.argsort(keys, axis=1, kind="stable")].ravel()[:count])
        repeats.append(np.repeat(rounds, size)[:count])
    return np.concatenate(sampled), np.concatenate(repeats)
