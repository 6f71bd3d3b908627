import math

import pytest

from raycnn.training.uncertainty import confidence_interval, small_validation_warning


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    """81 of 263: Newcombe, Statistics in Medicine 17 (1998), table I."""
    found = confidence_interval(hits, count)
    assert math.isclose(found[0], low, abs_tol=5e-5) and math.isclose(found[1], high, abs_tol=5e-5)


def test_a_small_validation_split_is_warned_of_with_the_interval_of_its_accuracy() -> None:
    assert small_validation_warning(0) is None, "there is no choice by validation"
    assert small_validation_warning(100) is None
    low, high = confidence_interval(16, 20)
    warning = small_validation_warning(20)
    assert (
        warning and "only 20 validation images" in warning and f"{low:.0%} to {high:.0%}" in warning
    )
