import numpy as np

from raycnn.data.images.fingerprint import fingerprint_of, may_be_same
from raycnn.shape import Shape

HASHES, LABELS = np.arange(4, dtype=np.uint64), np.array([0, 1, 0, 1])
OLD = "85cb3384fa0b9f277abaf1d1ecf47e2f535fa7a48f7ed9ca4855de5ee7718560"


def test_another_image_label_class_or_shape_is_other_content() -> None:
    shape = Shape(3, 4, 5)
    prints = [
        fingerprint_of(shape, ["a", "b"], [HASHES, LABELS]),
        fingerprint_of(shape, ["a", "b"], [HASHES + np.uint64(1), LABELS]),
        fingerprint_of(shape, ["a", "b"], [HASHES, 1 - LABELS]),
        fingerprint_of(shape, ["a", "c"], [HASHES, LABELS]),
        fingerprint_of(Shape(3, 5, 4), ["a", "b"], [HASHES, LABELS]),
    ]
    assert len({*prints}) == 5
    assert not any(may_be_same(prints[0], other) for other in prints[1:])
    assert may_be_same(prints[0], prints[0])


def test_a_run_of_an_earlier_version_is_not_refused_for_its_fingerprint() -> None:
    now = fingerprint_of(Shape(3, 4, 5), ["a", "b"], [HASHES, LABELS])
    assert may_be_same(OLD, now) and may_be_same(OLD, OLD) and not may_be_same(OLD, OLD[::-1])
