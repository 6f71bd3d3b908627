from collections.abc import Iterator

import pytest

from raycnn.background import prefetch


def test_results_worked_out_ahead_come_in_order_and_an_error_in_its_place() -> None:
    def invert(number: int) -> float:
        return 1 / number

    seen = []
    with pytest.raises(ZeroDivisionError):
        for result in prefetch(invert, range(5, -5, -1)):
            seen.append(result)
    assert seen == [1 / 5, 1 / 4, 1 / 3, 1 / 2, 1]


def test_no_more_is_taken_ahead_than_two_items() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    for result in prefetch(str, items()):
        assert len(taken) <= int(result) + 3
    assert len(taken) == 9
