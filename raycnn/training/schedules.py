"""Learning-rate schedules. The rate depends only on the step."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import Field

from raycnn.config.schema import Fraction, Positive
from raycnn.errors import SpecError

Between = Annotated[float, Field(gt=0, lt=1)]


class Rates(NamedTuple):
    """The hyperparameters that a schedule sets for one step."""

    factor: float
    """Factor on the optimizer's `lr`."""
    momentum: float | None = None
    """Momentum (Adam's first beta) if the schedule cycles it; else None."""


Schedule = Callable[[int], Rates]
"""Function from the index of a step of the run, from 0, to its rates."""


def constant(steps: int, *, warmup: Fraction = 0.0) -> Schedule:
    """Return a constant rate, after a linear warm-up over the fraction `warmup` of the run."""
    return _with_warmup(steps, warmup, lambda progress: 1.0)


def step(
    steps: int,
    *,
    milestones: list[Between] = [0.5, 0.75],  # noqa: B006  read only
    gamma: Positive = 0.1,
    warmup: Fraction = 0.0,
) -> Schedule:
    """Return a rate that is multiplied by `gamma` at each milestone, a fraction of the run."""

    def factor(progress: float) -> float:
        return gamma ** sum(progress >= milestone for milestone in milestones)

    return _with_warmup(steps, warmup, factor)


def cosine(steps: int, *, end_factor: Fraction = 0.0, warmup: Fraction = 0.0) -> Schedule:
    """Return a rate that decays along half a cosine to `end_factor` times its start.

    "SGDR", Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5.
    """

    def factor(progress: float) -> float:
        after_warmup = (progress - warmup) / (1 - warmup)
        return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * after_warmup)) / 2

    return _with_warmup(steps, warmup, factor)


def one_cycle(
    steps: int,
    *,
    pct_start: Between = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    max_momentum: Fraction | None = None,
    base_momentum: Fraction | None = None,
) -> Schedule:
    """Return a rate that rises to `lr` over the fraction `pct_start` of the run, then falls.

    It starts at lr / div_factor and ends at lr / div_factor / final_div_factor, as in torch's
    OneCycleLR; the momentum, if given, goes from its maximum to its base and back.
    "Super-Convergence", Smith and Topin 2017, arXiv:1708.07120.
    """
    if (max_momentum is None) != (base_momentum is None):
        raise SpecError("needs both max_momentum and base_momentum, or neither", "schedule")
    start = 1 / div_factor
    final = start / final_div_factor
    peak_step = max(1e-9, pct_start * steps - 1)

    def rates(step_index: int) -> Rates:
        is_rising = step_index <= peak_step
        if is_rising:
            t = step_index / peak_step
            factor = _cosine_interp(start, 1.0, t)
        else:
            t = (step_index - peak_step) / max(1e-9, steps - 1 - peak_step)
            factor = _cosine_interp(1.0, final, t)
        if max_momentum is None or base_momentum is None:
            return Rates(factor)
        ends = (max_momentum, base_momentum) if is_rising else (base_momentum, max_momentum)
        return Rates(factor, _cosine_interp(*ends, t))

    return rates


def _cosine_interp(start: float, end: float, t: float) -> float:
    """Interpolate from `start` to `end` along half a cosine, at the fraction `t`."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, t))) / 2


def _with_warmup(steps: int, warmup: float, factor: Callable[[float], float]) -> Schedule:
    """Return a schedule with a linear warm-up over the fraction `warmup` of the run.

    After it the rate is `factor` of the completed fraction of the run.
    """
    warmup_steps = math.ceil(warmup * steps)

    def rates(step_index: int) -> Rates:
        if step_index < warmup_steps:
            return Rates((step_index + 1) / warmup_steps)
        return Rates(factor(step_index / steps))

    return rates


def scale_lr(schedule: Schedule, factor: float) -> Schedule:
    """Return the schedule with its learning rates multiplied by `factor`."""

    def scaled(step_index: int) -> Rates:
        rates = schedule(step_index)
        return rates._replace(factor=rates.factor * factor)

    return scaled
