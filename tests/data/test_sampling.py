import numpy as np
import pytest

from raycnn.data.sampling import stratified_sample

LABELS = np.repeat([0, 1, 2], [50, 30, 21])


@pytest.mark.parametrize("count", [0, 1, 10, 50, 101])
def test_a_draw_has_exactly_the_count_and_no_image_twice(count: int) -> None:
    drawn = stratified_sample(LABELS, count, 0)
    assert len(drawn) == len(set(drawn)) == count


def test_every_class_is_drawn_in_proportion() -> None:
    assert np.bincount(LABELS[stratified_sample(LABELS, 20, 0)]).tolist() == [10, 6, 4]


def test_a_draw_follows_from_its_seed_alone() -> None:
    assert (stratified_sample(LABELS, 20, 3) == stratified_sample(LABELS, 20, 3)).all()
    assert (stratified_sample(LABELS, 20, 3) != stratified_sample(LABELS, 20, 4)).any()
