"""Counter-based random numbers: functions of (seed, epoch, sample) and of nothing else.

They depend neither on earlier random numbers nor on the number of workers, so a resumed run equals
an uninterrupted one, and two workers equal one. The mixing function is splitmix64 (Steele, Lea,
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17), vectorized.
"""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scramble(z: Bits) -> Bits:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(seed: int, *keys: int | NDArray[np.integer]) -> Bits:
    """Return 64 random bits for each element of the keys, which are broadcast together."""
    state: Bits = np.array([seed & (2**64 - 1)], dtype=np.uint64)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64
        for key in keys:
            state = _scramble(state + GOLDEN) ^ np.asarray(key).astype(np.uint64)
        return _scramble(state + GOLDEN)


def number(seed: int, *keys: int) -> int:
    """Return a derived seed, 0 ≤ number < 2**63, for a seed and the keys of a purpose."""
    return int(random_bits(seed, *keys)[0] >> np.uint64(1))


def uniform(seed: int, epoch: int, samples: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """Return numbers in [0, 1), shape (samples, count), to augment samples with in this epoch."""
    bits = random_bits(seed, epoch, np.asarray(samples)[:, None], np.arange(count)[None, :])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)  # 24 bits: never 1.0


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return a random permutation (count,) of the samples for this epoch."""
    return np.argsort(random_bits(seed, epoch, np.arange(count)), kind="stable")
