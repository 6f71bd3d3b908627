"""What trials change, and that nothing else decides it."""

import numpy as np
import pytest

from raycnn.config.search import Domain, TuneSpec
from raycnn.runs.metrics_file import MetricsWriter
from raycnn.search.folder import Search
from raycnn.search.queue import TrialQueue
from raycnn.search.samplers import make_sampler
from raycnn.training.callbacks import EpochEnded
from tests.support.searches import CPU, Read


def drawn(search: TuneSpec, index: int = 0, count: int = 200) -> list[dict]:
    draws = make_sampler(search, search.architectures[index])
    return [draws.changes(number) for number in range(count)]


SPACE = """\
tune:
  space:
    optimizer.lr: {loguniform: [1e-4, 1]}
    optimizer.momentum: {uniform: [0.5, 0.9]}
    train.epochs: {randint: [2, 5]}
    schedule: {choice: [cosine, one_cycle, {name: step, gamma: 0.5}]}
"""


def test_draws_stay_in_their_ranges_and_fill_them(read: Read) -> None:
    draws = drawn(read(SPACE))
    rates = np.array([d["optimizer.lr"] for d in draws])
    assert 1e-4 <= rates.min() < 3e-4 and 0.3 < rates.max() <= 1
    assert 0.4 < (rates < 1e-2).mean() < 0.6, "every order of magnitude equally often"
    momenta = np.array([d["optimizer.momentum"] for d in draws])
    assert 0.5 <= momenta.min() < 0.52 and 0.88 < momenta.max() <= 0.9
    assert {d["train.epochs"] for d in draws} == {2, 3, 4, 5}
    assert len({str(d["schedule"]) for d in draws}) == 3


def test_a_draw_depends_on_seed_architecture_and_number_alone(read: Read) -> None:
    both = "architectures: [{name: a, model: lenet}, {name: b, model: lenet}]\n"
    first = drawn(read(SPACE))
    assert drawn(read(SPACE)) == first
    assert drawn(read(SPACE, "tune.seed=1")) != first
    search = read(both + SPACE)
    assert drawn(search, 0) != drawn(search, 1)
    turned = read(both.replace("{name: a, model: lenet}, ", "") + SPACE)
    assert drawn(turned) == drawn(search, 1), "another architecture beside it changes nothing"


@pytest.mark.parametrize("seed", range(5))
def test_a_few_draws_fill_the_range_evenly(read: Read, seed: int) -> None:
    """Of 8 draws there is one in each eighth of the logarithmic range, in whatever order."""
    draws = drawn(read(SPACE, f"tune.seed={seed}"), count=8)
    eighths = {int((np.log10(d["optimizer.lr"]) + 4) / 4 * 8) for d in draws}
    assert len(eighths) == 8
    assert drawn(read(SPACE, f"tune.seed={seed}"), count=16)[:8] == draws, "more keep the earlier"


def test_no_trial_is_a_copy_of_another(read: Read) -> None:
    search = read(
        "tune: {trials: 9, space: {train.epochs: {randint: [1, 2]}, train.batch_size: {choice: [16, 32]}}}\n"
    )
    (architecture,) = search.architectures
    assert architecture.trials(9) == 4, "there are no more points"
    assert len({str(d) for d in drawn(search, count=4)}) == 4
    optuna = read("tune: {trials: 9, searcher: optuna, space: {train.epochs: {randint: [1, 6]}}}\n")
    sampler, found = make_sampler(optuna, optuna.architectures[0]), []
    for number in range(optuna.architectures[0].trials(9)):
        found.append(sampler.changes(number)["train.epochs"])
        sampler.tell({"train.epochs": found[-1]}, 0.5)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


def test_a_grid_runs_once_however_many_trials_are_asked_for(read: Read) -> None:
    search = read("tune: {trials: 3, space: {train.epochs: {grid: [1, 2, 3]}}}\n")
    assert [key.id for key in search.trials()] == ["lenet-000", "lenet-001", "lenet-002"]
    assert [d["train.epochs"] for d in drawn(search, count=3)] == [1, 2, 3]


def test_a_grid_is_gone_through_whole_and_all_else_is_drawn_anew(read: Read) -> None:
    search = read(
        "tune: {trials: 2, space: {train.epochs: {grid: [1, 2, 3]}, train.batch_size: {grid: [16, 32]},"
        " optimizer.lr: {loguniform: [1e-3, 1]}}}\n"
    )
    (architecture,) = search.architectures
    assert architecture.trials(search.tune.trials) == 12
    draws = drawn(search, count=12)
    points = [(d["train.epochs"], d["train.batch_size"]) for d in draws]
    assert len(set(points[:6])) == 6 and points[:6] == points[6:]
    assert len({d["optimizer.lr"] for d in draws}) == 12


@pytest.mark.parametrize(
    ("space", "trials"),
    [("{train.epochs: {grid: [1, 2]}}", 2), ("{optimizer.lr: {uniform: [0.1, 1]}}", 10), ("{}", 1)],
)
def test_without_a_number_there_are_ten_draws_or_each_point_once(
    read: Read, space: str, trials: int
) -> None:
    search = read(f"tune: {{space: {space}}}\n")
    assert search.architectures[0].trials(search.tune.trials) == trials


@pytest.mark.parametrize("ends", [(1000.0, 1001.0), (1e-9, 2e-9), (-3.0, 5.0)])
def test_a_narrow_range_still_has_many_values(ends: tuple[float, float]) -> None:
    domain = Domain(uniform=list(ends))
    values = [domain.at_quantile(u) for u in np.linspace(0, 1 - 1e-9, 500)]
    assert len(set(values)) > 400 and ends[0] <= min(values) and max(values) <= ends[1]


OPTUNA = """\
tune:
  searcher: optuna
  space:
    optimizer.lr: {loguniform: [1e-4, 1]}
    schedule: {choice: [cosine, {name: step, gamma: 0.5}]}
    train.epochs: {randint: [1, 4]}
"""


def off(changes: dict) -> float:
    """Orders of magnitude from the best rate, 0.01: 1 on average over the range."""
    return abs(np.log10(changes["optimizer.lr"]) + 2)


def test_optuna_draws_where_earlier_trials_did_well_also_when_told_of_them_anew(
    read: Read,
) -> None:
    later, resumed = [], []
    for seed in range(3):
        search = read(OPTUNA, f"tune.seed={seed}")
        unbroken, anew = (make_sampler(search, search.architectures[0]) for _ in range(2))
        for number in range(40):
            changes = unbroken.changes(number)
            for told in (unbroken, anew):
                told.tell(changes, -off(changes))
            if number >= 20:
                later.append(off(changes))
        anew.tell(changes, None)  # of a failed one, too
        resumed += [off(anew.changes(number)) for number in range(40, 60)]
    assert np.mean(later) < 0.8 and np.mean(resumed) < 0.8
    assert {str(anew.changes(60)["schedule"])} <= {"cosine", "{'name': 'step', 'gamma': 0.5}"}


def test_a_search_tells_optuna_what_became_of_each_trial_also_when_it_is_resumed(
    read: Read,
) -> None:
    """The metrics are written here: nothing is trained."""
    search = Search.create(read(OPTUNA.replace("tune:", "tune:\n  trials: 16")))
    (architecture,) = search.spec.architectures
    told, queue = make_sampler(search.spec, architecture), TrialQueue(search)
    for number in range(16):
        if number == 12:
            queue = TrialQueue(Search(search.folder))
        trial = queue.take(CPU)
        assert trial.info["changes"] == told.changes(number)
        accuracy = 1 - off(trial.info["changes"]) / 4
        row = {"epoch": 1, "val/loss": 1.0, "val/acc1": accuracy, "images_per_s": 1.0}
        MetricsWriter(trial.run.folder / "metrics.csv").on_event(EpochEnded(metrics=row))
        trial.update(state="done")
        queue.complete(trial)
        told.tell(trial.info["changes"], accuracy)


def test_a_resumed_search_draws_what_an_unbroken_one_does(read: Read) -> None:
    search = read(OPTUNA)
    (architecture,) = search.architectures
    unbroken, drawn = make_sampler(search, architecture), []
    for number in range(30):
        drawn.append(unbroken.changes(number))
        unbroken.tell(drawn[-1], None if number == 3 else -off(drawn[-1]))
    for before in (1, 15):
        resumed = make_sampler(search, architecture)
        for number, changes in enumerate(drawn):
            if number >= before:
                assert resumed.changes(number) == changes
            resumed.tell(changes, None if number == 3 else -off(changes))
