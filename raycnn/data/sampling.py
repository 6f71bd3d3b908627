"""Sample images by class: a validation split, a subset, a balanced epoch. Functions of a seed."""

import numpy as np
from numpy.typing import NDArray

from raycnn.runtime import rng

Indices = NDArray[np.int64]


def stratified_sample(
    labels: NDArray[np.integer], count: int, seed: int, keep_one: bool = False
) -> Indices:
    """Return `count` indices in rising order, every class in proportion (largest remainders first).

    With `keep_one` at least one image of every class is not sampled: then there may be fewer.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    most = sizes - 1 if keep_one else sizes
    exact = sizes * (count / max(1, len(labels)))
    quota = np.minimum(np.floor(exact).astype(int), most)
    short = count - int(quota.sum())
    first = np.argsort(quota - exact, kind="stable")
    first = first[quota[first] < most[first]]
    quota[first[:short]] += 1

    order = np.lexsort((rng.random_bits(seed, np.arange(len(labels))), labels))
    ends = np.cumsum(sizes)
    chosen = [
        order[end - size : end - size + n] for end, size, n in zip(ends, sizes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def stratified_fold(labels: NDArray[np.integer], fold: int, folds: int, seed: int) -> Indices:
    """Return the indices of one of `folds` parts, in rising order; every class is spread evenly.

    The parts of one seed are disjoint, and together hold every index.
    """
    order = np.lexsort((rng.random_bits(seed, np.arange(len(labels))), labels))
    return np.sort(order[fold::folds])


def balanced_sample(labels: NDArray[np.integer], seed: int, epoch: int) -> tuple[Indices, Indices]:
    """Return as many indices as there are labels, every class as often, or once more by chance.

    Also (n,) how often each was sampled before: an image comes again when all of its class have.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = np.full(len(classes), len(labels) // len(classes))
    quota[np.argsort(rng.random_bits(seed, epoch, classes))[: len(labels) % len(classes)]] += 1
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    picked, again = [], []
    for members, size, due in zip(by_class, sizes, quota, strict=True):
        times = np.arange(-(-due // size))
        keys = rng.random_bits(seed, epoch, times[:, None], members[None, :])
        picked.append(members[np.argsort(keys, axis=1, kind="stable")].ravel()[:due])
        again.append(np.repeat(times, size)[:due])
    return np.concatenate(picked), np.concatenate(again)
