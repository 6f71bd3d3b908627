import math

import pytest
import torch

from raycnn.config.components import SCHEDULES
from raycnn.config.schema import ComponentConfig
from raycnn.training.schedules import Rates


def rates(name: str, steps: int, **options: object) -> list[Rates]:
    schedule = SCHEDULES.build(ComponentConfig(name=name, **options), steps)
    return [schedule(k) for k in range(steps)]


def test_one_cycle_is_torchs_own_momentum_included() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=50)
    for ours in rates("one_cycle", 50, max_momentum=0.95, base_momentum=0.85):
        group = optimizer.param_groups[0]
        assert math.isclose(0.4 * ours.factor, group["lr"], abs_tol=1e-12)
        assert math.isclose(ours.momentum or 0, group["momentum"], abs_tol=1e-12)
        optimizer.step()
        if theirs.last_epoch < 49:
            theirs.step()


def test_cosine_falls_from_one_to_its_end() -> None:
    factors = [rate.factor for rate in rates("cosine", 100, end_factor=0.1)]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True)
    assert math.isclose(factors[50], 0.55)
    assert 0.1 < factors[-1] < 0.101


def test_step_falls_at_its_shares_of_the_run() -> None:
    factors = [rate.factor for rate in rates("step", 100, milestones=[0.5, 0.75], gamma=0.1)]
    assert factors[49] == 1 and math.isclose(factors[50], 0.1) and math.isclose(factors[75], 0.01)


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_warm_up_rises_in_a_line_to_the_full_rate(name: str) -> None:
    factors = [rate.factor for rate in rates(name, 100, warmup=0.1)]
    assert [round(factor, 9) for factor in factors[:10]] == [
        round((k + 1) / 10, 9) for k in range(10)
    ]
    assert factors[10] == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_fits_the_shortest_run(name: str, steps: int) -> None:
    assert all(0 <= rate.factor <= 1 for rate in rates(name, steps))
