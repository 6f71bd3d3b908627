"""Trials of a search without Ray: trained one after another in this process."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raycnn.config.load import load_job
from raycnn.errors import EnvironmentUnavailable
from raycnn.search import leaderboard
from raycnn.search.folder import Search
from raycnn.training import evaluation
from tests.support.runs import numbers, same, train, weights
from tests.support.searches import Read, begin, go


@pytest.fixture
def search(read: Read) -> Search:  # noqa: F811
    return Search.create(read("tune: {space: {optimizer.lr: {grid: [0.001, 0.05, 0.1]}}}\n"))


def states(search: Search) -> dict[str, Any]:
    return {one.id: one.info.get("state") for one in search.trials()}


def test_the_best_job_comes_to_the_metric_of_its_trial(search: Search) -> None:
    trials = begin(search, [0.001, 0.05, 0.1])
    go(search, *trials)
    found = leaderboard.write_leaderboard(search)
    assert found[0].metric == max(entry.metric or 0 for entry in found) > 0.1
    run = train(load_job(search.best_job_path("lenet")))
    best = search.trial(found[0].trial)
    assert numbers(run) == numbers(best.run)
    assert same(weights(run), weights(best.run))
    assert max(float(row["val/acc1"]) for row in run.rows()) == found[0].metric


def test_no_trial_looks_at_the_test_images(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for module in ("loop", "evaluation"):
        monkeypatch.setattr(f"raycnn.training.{module}.evaluate", _counting(seen))
    go(search, *begin(search, [0.05]))
    assert seen == [20] * 3, "the held-out tenth of 200 images, in each of 3 epochs"
    assert search.trials()[0].run.result() is None


def _counting(seen: list[int]) -> Any:
    evaluate = evaluation.evaluate

    def counted(model: Any, loader: Any, *rest: Any) -> Any:
        seen.append(loader.samples)
        return evaluate(model, loader, *rest)

    return counted


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(search: Search) -> None:
    trials = begin(search, [1e30, 0.05])
    go(search, *trials)
    found = leaderboard.write_leaderboard(search)
    assert [(e.trial, e.state) for e in found] == [("lenet-001", "done"), ("lenet-000", "failed")]
    assert "the loss is not finite" in found[1].reason
    assert leaderboard.winners(found).keys() == {"lenet"}


def test_a_bug_in_a_trial_is_recorded_too(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a plugin's")

    trials = begin(search, [0.05])
    monkeypatch.setattr("raycnn.training.loop.train_epoch", broken)
    go(search, *trials)
    assert trials[0].info["reason"] == "ZeroDivisionError: a plugin's"
    assert "ZeroDivisionError" in (trials[0].run.folder / "logs" / "rank-0.log").read_text()


def test_asha_stops_a_bad_trial_at_its_first_rung(read: Read) -> None:  # noqa: F811
    search = Search.create(
        read("tune: {scheduler: asha, space: {optimizer.lr: {choice: [1]}}}\n", "train.epochs=6")
    )
    trials = begin(search, [0.05, 0.00001])
    go(search, *trials)
    good, bad = trials
    assert (good.info["state"], len(good.rows())) == ("done", 6)
    assert (bad.info["state"], len(bad.rows())) == ("stopped", 2)
    assert bad.info["reason"].startswith("after 2 of 6 epochs: 1 of 1 others were better")


def test_a_search_by_a_loss_goes_for_the_lower_one(read: Read) -> None:  # noqa: F811
    search = Search.create(
        read(
            "tune: {metric: val/loss, scheduler: asha, space: {optimizer.lr: {grid: [0.05, 1e-5]}}}\n",
            "train.epochs=6",
        )
    )
    good, bad = begin(search, [0.05, 0.00001])
    go(search, good, bad)
    assert (good.info["state"], bad.info["state"]) == ("done", "stopped")
    found = leaderboard.write_leaderboard(search)
    assert [entry.trial for entry in found] == ["lenet-000", "lenet-001"]
    assert found[0].metric == min(float(row["val/loss"]) for row in good.rows())
    assert load_job(search.best_job_path("lenet")).optimizer.options["lr"] == 0.05


def test_past_the_deadline_a_trial_is_saved_and_goes_on_exactly(search: Search) -> None:
    unbroken, broken = begin(search, [0.05, 0.05])
    go(search, unbroken)
    go(search, broken, deadline=time.time() - 1)
    assert not broken.ended and list(broken.run.checkpoints.glob("0*"))
    go(search, broken)
    assert broken.ended and same(weights(unbroken.run), weights(broken.run))
    assert numbers(unbroken.run) == numbers(broken.run)


def test_a_trial_that_a_kill_left_half_made_is_made_again(search: Search) -> None:
    (one,) = begin(search, [0.05])
    (one.run.folder / "trial.json").unlink()
    go(search, *begin(search, [0.05]))
    assert states(search) == {"lenet-000": "done"}


def test_a_leaderboard_says_what_every_trial_came_to(search: Search) -> None:
    go(search, *begin(search, [0.05, 0.1]))
    leaderboard.write_leaderboard(search)
    said = json.loads((search.folder / "leaderboard.json").read_text())
    first = said["trials"][0]
    assert said["overall"] == said["winners"]["lenet"] == first["trial"]
    assert 0 <= first["low"] < first["val_acc1"] < first["high"] <= 1
    assert first["parameters"] > 1000 and first["seconds"] > 0 and first["images_per_s"] > 0
    assert (first["epochs"], first["of_epochs"], first["device"]) == (3, 3, "cpu")
    lines = (search.folder / "leaderboard.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].endswith(",optimizer.lr")


def test_a_search_is_found_by_folder_name_or_number(search: Search, tmp_path: Path) -> None:
    for text in (str(search.folder), "tiny/1", "tiny"):
        assert Search.find(text, str(tmp_path / "runs")).folder == search.folder


def test_a_search_is_searched_by_one_process(search: Search) -> None:
    with (
        search.lock(),
        pytest.raises(EnvironmentUnavailable, match="is being searched by another process"),
    ):
        with Search(search.folder).lock():
            pytest.fail("two at once")
