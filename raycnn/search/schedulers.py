"""Schedulers: decide which trials to stop, as pure functions of the learning curves so far.

Trials of one architecture are compared at the same fraction of their runs. A learning-rate schedule
is as long as its run, so at the same epoch a short run has annealed further than a long one, and
would win.

Ray Tune's schedulers keep their state in the driver's memory and in pickles, so a search that was
killed could neither continue exactly nor safely, and they cannot stop all workers of a trial in the
same step.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from raycnn.config.registry import Registry


@dataclass(frozen=True)
class LearningCurve:
    """The metric of a trial after each epoch so far."""

    epochs: int
    """The number of epochs of the whole run."""
    values: Sequence[float]
    """The metric after each epoch so far; higher is better."""

    def best(self, epoch: int) -> float:
        """Return the best value of the first `epoch` epochs."""
        return max(self.values[:epoch])


Scheduler = Callable[[LearningCurve, Callable[[], Sequence[LearningCurve]]], str | None]
"""Returns the reason to stop a trial after its latest epoch, or None to continue.

Takes the trial's curve, and a function that reads those of the other trials of its architecture.
"""


def none() -> Scheduler:
    """Stop no trial."""
    return lambda own, others: None


def asha(*, grace: PositiveInt = 1, factor: Annotated[int, Field(ge=2)] = 3) -> Scheduler:
    """Continue only the best 1/factor at each rung (ASHA: Li et al. 2018, arXiv:1810.05934).

    Rungs are 1/factor of a run, 1/factor² and so on, but none before `grace` epochs.
    """

    def scheduler(own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> str | None:
        epoch, part = len(own.values), factor
        while own.epochs / part >= grace and own.epochs >= part:
            if math.ceil(own.epochs / part) == epoch:
                rungs = [(other, math.ceil(other.epochs / part)) for other in others()]
                competitors = [
                    other.best(rung) for other, rung in rungs if len(other.values) >= rung
                ]
                better = sum(value > own.best(epoch) for value in competitors)
                if better >= math.ceil((len(competitors) + 1) / factor):
                    count = len(competitors)
                    return f"{better} of {count} others were better at 1/{part} of the run"
            part *= factor
        return None

    return scheduler


def median(*, grace: PositiveInt = 1, least: PositiveInt = 3) -> Scheduler:
    """Stop trials worse than the median of the other trials' running means.

    Vizier's rule: Golovin et al., KDD 2017, section 3.2.2. It stops nothing before `grace` epochs,
    or while fewer than `least` other trials have come as far.
    """

    def scheduler(own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> str | None:
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

    return scheduler


@dataclass(frozen=True, kw_only=True)
class Pbt:
    """Every `interval` epochs, have the worst `quantile` copy some of the best, perturbed.

    A setting is resampled with probability `resample`, and else moved to a nearby value. No trial
    is stopped. See population.py.
    """

    interval: PositiveInt
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25

    def __call__(self, own: LearningCurve, others: Callable[[], Sequence[LearningCurve]]) -> None:
        return None


SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler", "tune.scheduler", {"asha": asha, "median": median, "none": none, "pbt": Pbt}
)
