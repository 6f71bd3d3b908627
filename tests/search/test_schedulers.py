"""Which trials are stopped."""

from collections.abc import Sequence

from raycnn.config.schema import ComponentConfig
from raycnn.search.schedulers import SCHEDULERS, LearningCurve


def verdict(
    rule: ComponentConfig, own: LearningCurve, others: Sequence[LearningCurve]
) -> str | None:
    return SCHEDULERS.build(rule)(own, lambda: others)


ASHA = ComponentConfig(name="asha")


def course(epochs: int, *values: float) -> LearningCurve:
    return LearningCurve(epochs, values)


def test_asha_lets_the_best_third_pass_a_rung() -> None:
    others = [course(9, value) for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert verdict(ASHA, course(9, 0.05), others) == "5 of 5 others were better at 1/9 of the run"
    assert verdict(ASHA, course(9, 0.35), others), "third of six"
    assert verdict(ASHA, course(9, 0.45), others) is None, "second of six"
    assert verdict(ASHA, course(9, 0.1), []) is None, "the first has nobody to lag behind"


def test_asha_looks_at_rungs_only() -> None:
    better = [course(9, *[0.9] * 9)] * 5
    stopped = [bool(verdict(ASHA, course(9, *[0.1] * e), better)) for e in range(1, 10)]
    assert [e for e, yes in enumerate(stopped, 1) if yes] == [1, 3]


def test_asha_compares_at_the_same_share_of_runs_of_different_lengths() -> None:
    """At epoch 3 a run of 3 has come to its end, and one of 9 to a third."""
    short = [course(3, 0.2, 0.8, 0.9)] * 5
    assert verdict(ASHA, course(9, 0.1, 0.2, 0.5), short) is None, "they had 0.2 at a third"
    assert verdict(ASHA, course(9, 0.1, 0.1, 0.1), short)


def test_asha_spares_the_first_epochs() -> None:
    better = [course(27, *[0.9] * 27)] * 5
    late = ComponentConfig(name="asha", grace=3)
    assert verdict(ASHA, course(27, 0.1), better)
    assert verdict(late, course(27, 0.1), better) is None
    assert verdict(late, course(27, *[0.1] * 3), better)


def test_a_trial_is_judged_by_its_best_epoch_so_far() -> None:
    others = [course(9, 0.1, 0.1, 0.3)] * 3
    assert verdict(ASHA, course(9, 0.1, 0.8, 0.1), others) is None


def test_the_median_stops_what_is_worse_than_half() -> None:
    rule = ComponentConfig(name="median", grace=2)
    others = [course(4, v, v, v, v) for v in (0.2, 0.4, 0.6)]
    assert verdict(rule, course(4, 0.1, 0.3), others) == "worse than the median of 3 others"
    assert verdict(rule, course(4, 0.1, 0.5), others) is None
    assert verdict(rule, course(4, 0.1), others) is None, "not before `grace` epochs"
    assert verdict(rule, course(4, 0.1, 0.3), others[:2]) is None, "too few to say"
    assert verdict(rule, course(4, *[0.1] * 4), others) is None, "at its end it is done"


def test_none_stops_nothing() -> None:
    others = [course(9, *[0.9] * 9)] * 9
    assert verdict(ComponentConfig(name="none"), course(9, 0.0), others) is None
