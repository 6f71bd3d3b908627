"""Runs side by side: what sets them apart, and what may not be compared."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raycnn.analysis import compare as comparison
from raycnn.analysis.compare import compare, mcnemar
from raycnn.analysis.evaluate import stored_predictions
from raycnn.config.schema import JobSpec
from raycnn.errors import SpecError
from raycnn.runs.directory import Run
from tests.support.processes import Call
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]
OTHER_DATA = {
    "name": "synthetic", "size": 12, "channels": 1, "train": 100, "test": 40,
    "transforms": [{"name": "resize", "size": 12}],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three runs of one job, two of them with seeds of their own, and one on fewer images."""
    from raycnn.config.load import job_from_tree
    from tests.support.jobs import TINY

    root = tmp_path_factory.mktemp("compared")
    plain = job_from_tree(TINY).change({"storage.path": str(root), "train.epochs": 2})
    changes = [{}, {"seed": 1}, {"optimizer.lr": 0.2}, {"data": OTHER_DATA}]
    return [train(plain.change(change)) for change in changes]


def test_differing_keys_are_those_that_differ(runs: list[Run]) -> None:
    found = compare(runs[:3])
    assert found.differing == {"seed": [0, 1, 0], "optimizer.lr": [0.05, 0.05, 0.2]}
    assert [run.name for run in found.runs] == ["tiny/1", "tiny/2", "tiny/3"]


def test_seeds_are_grouped_with_mean_and_deviation(runs: list[Run]) -> None:
    found = compare(runs[:3])
    seeds, other = found.groups
    accuracies = [(run.result() or {})["test"]["acc1"] for run in runs[:2]]
    assert seeds.seeds == [0, 1] and seeds.mean == pytest.approx(np.mean(accuracies))
    assert seeds.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert other.deviation is None


def test_tests_of_the_same_images_are_compared_image_by_image(runs: list[Run]) -> None:
    from scipy import stats

    found = compare([runs[0], runs[2]])
    (pair,) = found.paired
    one, other = (stored_predictions(run) for run in (runs[0], runs[2]))
    assert one and other
    right = [own.splits["test"].predicted == own.splits["test"].labels for own in (one, other)]
    assert pair.only_one == int((right[0] & ~right[1]).sum())
    assert pair.only_other == int((right[1] & ~right[0]).sum())
    difference = (runs[2].result() or {})["test"]["acc1"] - (runs[0].result() or {})["test"]["acc1"]
    assert pair.difference == pytest.approx(difference)
    b, c = pair.only_one, pair.only_other
    if pair.exact:
        assert pair.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue)
    else:
        assert pair.p_value == pytest.approx(stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1))


def test_tests_of_other_data_are_refused(runs: list[Run]) -> None:
    found = compare([runs[0], runs[3]])
    (pair,) = found.paired
    assert pair.p_value is None and "data" in pair.refused
    assert found.classes == {} and "data.name" in found.differing


def test_runs_without_predictions_say_what_makes_them(runs: list[Run]) -> None:
    found = compare(runs[:2])
    bare = replace(found.runs[1], predictions=None)
    pair = comparison.paired_test(found.runs[0], bare)
    assert pair.p_value is None and "raycnn eval" in pair.refused and "tiny/2" in pair.refused


@pytest.mark.parametrize(
    ("b", "c", "p", "exact"),
    [
        (0, 0, 1.0, True),
        (1, 8, 20 / 512, True),  # 2 * (1 + 9) / 2^9
        (5, 5, 1.0, True),
        (59, 6, 1.1e-10, False),  # (53 - 1)^2 / 65 = 41.6
        (13, 12, 1.0, False),
    ],
)
def test_mcnemar_is_exact_for_few_and_chi_squared_for_many(
    b: int, c: int, p: float, exact: bool
) -> None:
    found, was_exact = mcnemar(b, c)
    assert was_exact == exact and found == pytest.approx(p, rel=0.03)
    assert mcnemar(c, b) == (found, was_exact)


def test_classes_with_the_largest_difference_come_first(runs: list[Run]) -> None:
    found = compare([runs[0], runs[2]])
    spreads = [max(recalls) - min(recalls) for recalls in found.classes.values()]
    assert len(spreads) == 10 and spreads == sorted(spreads, reverse=True)


def test_one_run_or_the_same_twice_is_bad_usage(runs: list[Run]) -> None:
    for some in (runs[:1], [runs[0], runs[0]]):
        with pytest.raises(SpecError):
            compare(some)


def test_the_command_line_compares_and_writes_a_page(
    runs: list[Run], call: Call, tmp_path: Path
) -> None:
    folders = [run.folder for run in runs]
    ended, out, _ = call("compare", *folders, "--html", "page.html")
    assert ended == 0 and "optimizer.lr" in out and "McNemar" in out and "not compared" in out
    page = (tmp_path / "page.html").read_text()
    assert "://" not in page and "tiny/3" in page and page.count("<svg") >= 2
    ended, out, _ = call("compare", *folders[:2], "--json")
    assert ended == 0 and json.loads(out)["differing"] == {"seed": [0, 1]}
    assert call("compare", folders[0])[0] == 2
    assert call("compare", folders[0], "nowhere")[0] == 2
