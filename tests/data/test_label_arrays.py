import numpy as np

from raycnn.data.label_arrays import class_counts, distinct_labels, label_name, strata
from raycnn.data.sampling import stratified_sample

MARKS = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], np.uint8)


def test_single_labels_are_their_own_strata() -> None:
    labels = np.array([2, 0, 2])
    assert strata(labels) is labels and distinct_labels(labels) is labels
    assert class_counts(labels, 4).tolist() == [1, 0, 2, 0]
    assert label_name(labels[0], ("a", "b", "c")) == "c"


def test_an_image_of_several_classes_is_sampled_by_the_rarest() -> None:
    assert class_counts(MARKS, 3).tolist() == [4, 1, 1]
    assert strata(MARKS).tolist() == [2, 0, 1, 3, 0]


def test_a_rare_class_is_in_both_parts_of_a_split() -> None:
    noise = np.random.default_rng(0)
    marks = (noise.random((1000, 8)) < [0.9, 0.5, 0.5, 0.3, 0.2, 0.1, 0.02, 0.01]).astype(np.uint8)
    held = stratified_sample(strata(marks), 200, 5)
    share = class_counts(marks[held], 8) / class_counts(marks, 8)
    assert len(held) == 200 and (abs(share - 0.2) < 0.1).all()


def test_equal_sets_of_classes_are_one_label() -> None:
    numbers = distinct_labels(MARKS)
    assert numbers[1] == numbers[4] and len({*numbers.tolist()}) == 4
    assert label_name(MARKS[0], ("a", "b", "c")) == "a, c" and label_name(MARKS[3], ()) == "none"
