"""Cross-validation as a search over folds, without Ray."""

import json
from pathlib import Path

import numpy as np
import pytest

from raycnn.config.load import load_job
from raycnn.data.sampling import stratified_fold
from raycnn.data.splits import open_splits
from raycnn.launch import trial
from raycnn.search import leaderboard
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry
from tests.support.searches import Read, SilentView

FOLDS = 3


def test_folds_hold_out_every_image_once_and_every_class_evenly() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 101)
    parts = [stratified_fold(labels, fold, 5, seed=3) for fold in range(5)]
    assert sorted(np.concatenate(parts)) == list(range(101))
    counts = np.array([np.bincount(labels[part], minlength=7) for part in parts])
    assert (counts.max(0) - counts.min(0) <= 1).all()
    assert {len(part) for part in parts} == {20, 21}
    assert not np.array_equal(parts[0], stratified_fold(labels, 0, 5, seed=4))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("folds")
    path = folder / "folds.tune.yaml"
    path.write_text(
        "name: folds\n"
        "data: {name: digits, limit: 150, transforms: [{name: resize, size: 12}]}\n"
        "model: {name: lenet, activation: relu}\n"
        "optimizer: {name: sgd, lr: 0.05, momentum: 0.9}\n"
        "train: {epochs: 2, batch_size: 16}\n"
        f"storage: {{path: {folder}}}\n"
        f"tune: {{folds: {FOLDS}, pools: [{{device: cpu, cpus: 1}}],"
        " space: {optimizer.lr: {grid: [0.05, 1e30]}}}\n"
    )
    from raycnn.config.search import load_search

    search = Search.create(load_search(path))
    trial.run_here(search, SilentView())
    return search


def board(search: Search) -> list[LeaderboardEntry]:
    return leaderboard.write_leaderboard(search)


def test_every_draw_is_trained_once_per_fold(done: Search) -> None:
    ids = [one.id for one in done.trials()]
    assert ids == [f"lenet-00{draw}-fold{fold}" for draw in range(2) for fold in range(FOLDS)]
    held = [open_splits(one.run.job()).members["val"] for one in done.trials()[:FOLDS]]
    rows = np.concatenate([rows for _, rows in held])
    assert len(rows) == len({*rows.tolist()}) == 150


def test_the_leaderboard_has_the_mean_and_deviation_over_folds(done: Search) -> None:
    good, bad = board(done)
    assert (good.trial, good.state, bad.state, bad.metric) == ("lenet-000", "done", "failed", None)
    curves = np.array([[row["val/acc1"] for row in t.rows()] for t in done.trials()[:FOLDS]])
    best = curves.mean(0).argmax()
    assert good.metric == pytest.approx(curves[:, best].mean())
    assert good.deviation == pytest.approx(curves[:, best].std(ddof=1))
    assert good.low is not None and good.high is not None and good.metric is not None
    assert good.low < good.metric < good.high
    said = json.loads((done.folder / "leaderboard.json").read_text())["trials"][0]
    assert said["deviation"] == good.deviation


def test_the_best_job_holds_nothing_out_for_a_fold(done: Search) -> None:
    board(done)
    assert load_job(done.best_job_path("lenet")).data.fold is None


def test_the_draws_of_a_search_do_not_depend_on_its_folds(read: Read) -> None:
    space = "space: {optimizer.lr: {loguniform: [1e-3, 1]}}"
    plain, folded = read(f"tune: {{{space}}}\n"), read(f"tune: {{folds: 2, {space}}}\n")
    assert len(folded.trials()) == 2 * len(plain.trials())


def test_without_a_space_folds_cross_validate_one_job(read: Read, tmp_path: Path) -> None:
    assert [key.id for key in read("tune: {folds: 2}\n").trials()] == [
        "lenet-000-fold0",
        "lenet-000-fold1",
    ]
