import numpy as np

from raycnn.runtime import rng


def test_every_epoch_has_its_own_permutation() -> None:
    first, second = rng.order(0, 0, 1000), rng.order(0, 1, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9
    assert (first == rng.order(0, 0, 1000)).all()
    assert (first != rng.order(1, 0, 1000)).mean() > 0.9


def test_an_image_has_the_same_numbers_in_any_batch() -> None:
    together = rng.uniform(7, 3, np.arange(100), 4)
    alone = np.concatenate([rng.uniform(7, 3, np.array([i]), 4) for i in range(100)])
    assert (together == alone).all()
    assert 0 <= together.min() and together.max() < 1


def test_no_number_rounds_up_to_one() -> None:
    """53 bits rounded to a float32 did, once in 2**25, and a crop then lay outside its image."""
    drawn = rng.uniform(0, 123, np.arange(6570, 6580), 4)
    assert drawn.dtype == np.float32 and drawn.max() < 1


def test_the_numbers_are_spread_evenly_and_apart() -> None:
    drawn = rng.uniform(0, 0, np.arange(20_000), 2)
    counts, _ = np.histogram(drawn, bins=20)
    assert abs(counts / counts.mean() - 1).max() < 0.1
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.03


def test_seeds_do_not_change_between_versions() -> None:
    """Runs of earlier versions go on with the order they began with."""
    assert rng.number(0, 1, 2) == 3384391416029321617
    assert rng.order(0, 0, 8).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
