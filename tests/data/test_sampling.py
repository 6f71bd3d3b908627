import numpy as np
import pytest

from raycnn.data.sampling import stratified_sample

LABELS = np.repeat([0, 1, 2], [50, 30, 21])


@pytest.mark.parametrize("count", [0, 1, 10, 50, 101])
def test_a_sample_has_exactly_the_count_and_no_image_twice(count: int) -> None:
    sampled = stratified_sample(LABELS, count, 0)
    assert len(sampled) == len(set(sampled)) == count


def test_every_class_is_sampled_in_proportion() -> None:
    assert np.bincount(LABELS[stratified_sample(LABELS, 20, 0)]).tolist() == [10, 6, 4]


def test_a_sample_follows_from_its_seed_alone() -> None:
    assert (stratified_sample(LABELS, 20, 3) == stratified_sample(LABELS, 20, 3)).all()
    assert (stratified_sample(LABELS, 20, 3) != stratified_sample(LABELS, 20, 4)).any()


@pytest.mark.parametrize("count", [1, 10, 41, 60])
def test_one_image_of_every_class_can_be_kept(count: int) -> None:
    labels = np.array([0] * 20 + [1] * 2 + [*range(2, 40)])
    sampled = stratified_sample(labels, count, 0, keep_one=True)
    left = np.bincount(np.delete(labels, sampled), minlength=40)
    assert left.min() == 1 and 1 <= len(sampled) <= count
