"""Schedulers: which trials to stop, as a pure function of the learning curves so far.

Trials of one architecture are compared at the same share of their own runs. A learning-rate
schedule is as long as its run, so at the same epoch a short run has annealed further than a long
one, and would win.

Ray Tune has such rules too, but they live in its driver: what they saw is kept in memory and in
pickles, so a search that was killed could neither continue exactly nor safely, and a trial of
several workers cannot be stopped on all of them in the same step.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field, PositiveInt

from raycnn.config.registry import Registry


@dataclass(frozen=True)
class LearningCurve:
    """The metric of a trial after each epoch so far."""

    epochs: int
    """Epochs of the whole run."""
    values: Sequence[float]
    """After each epoch so far, more being better."""

    def best(self, epoch: int) -> float:
        """Return the best value of the first `epoch` epochs."""
        return max(self.values[:epoch])


class Rule(Protocol):
    def __call__(
        self, own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]
    ) -> str | None:
        """Return why a trial is to stop after its latest epoch, or None to continue.

        `others` reads the curves of the other trials of its architecture.
        """


def none() -> Rule:
    """Stop no trial."""
    return lambda own, others: None


def asha(*, grace: PositiveInt = 1, factor: Annotated[int, Field(ge=2)] = 3) -> Rule:
    """Continue only the best 1/factor at each rung (ASHA: Li et al. 2018, arXiv:1810.05934).

    Rungs are 1/factor of a run, 1/factor² and so on, but none before `grace` epochs.
    """

    def rule(own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> str | None:
        epoch, part = len(own.values), factor
        while own.epochs / part >= grace and own.epochs >= part:
            if math.ceil(own.epochs / part) == epoch:
                rungs = [(other, math.ceil(other.epochs / part)) for other in others()]
                rivals = [other.best(rung) for other, rung in rungs if len(other.values) >= rung]
                better = sum(rival > own.best(epoch) for rival in rivals)
                if better >= math.ceil((len(rivals) + 1) / factor):
                    return f"{better} of {len(rivals)} others were better at 1/{part} of the run"
            part *= factor
        return None

    return rule


def median(*, grace: PositiveInt = 1, least: PositiveInt = 3) -> Rule:
    """Stop what is worse than the median of the others' means (Vizier: Golovin et al., KDD 2017,
    section 3.2.2), but not before `grace` epochs, nor with fewer than `least` others as far.
    """

    def rule(own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> str | None:
        epoch = len(own.values)
        if epoch < grace or epoch == own.epochs:
            return None
        shares = [(other, math.ceil(other.epochs * epoch / own.epochs)) for other in others()]
        means = [
            statistics.fmean(other.values[:share])
            for other, share in shares
            if len(other.values) >= share
        ]
        if len(means) < least or own.best(epoch) >= statistics.median(means):
            return None
        return f"worse than the median of {len(means)} others"

    return rule


@dataclass(frozen=True)
class Pbt:
    """Stops no trial: the worst copy the best, see population.py."""

    interval: int
    quantile: float
    resample: float

    def __call__(self, own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> None:
        return None


def pbt(
    *,
    interval: PositiveInt,
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25,
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25,
) -> Rule:
    """Every `interval` epochs the worst `quantile` copy some of the best, settings perturbed.

    A setting is drawn anew with the probability `resample`, and else goes to a value near it.
    """
    return Pbt(interval, quantile, resample)


RULES: Registry[Rule] = Registry(
    "scheduler", "tune.scheduler", {"asha": asha, "median": median, "none": none, "pbt": pbt}
)
