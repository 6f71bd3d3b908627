"""Pictures of a search, and the numbers behind them."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from raycnn.report.search import draw, front, importance, value_of
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry
from tests.support.searches import Read

PLAIN = LeaderboardEntry(
    trial="lenet-000", architecture="lenet", device="cpu", state="done", metric=0.5, val_acc1=0.5,
    low=0.4, high=0.6, epochs=3, of_epochs=3, parameters=100, seconds=1.0, images_per_s=1000.0,
    reason="", changes={},
)  # fmt: skip


def entry(number: int, metric: float, seconds: float = 1.0, **changes: object) -> LeaderboardEntry:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    name = f"lenet-{number:03d}"
    return replace(PLAIN, trial=name, metric=metric, seconds=seconds, changes=dotted)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(0.5, 1.0), (0.4, 2.0), (0.9, 4.0), (0.9, 5.0), (0.7, 3.0)]
    board = [entry(n, metric, seconds) for n, (metric, seconds) in enumerate(points)]
    assert [e.trial for e in front(board, 1)] == ["lenet-000", "lenet-004", "lenet-002"]
    assert [e.trial for e in front(board, -1)] == ["lenet-000", "lenet-001"]


def test_importance_finds_the_key_that_mattered() -> None:
    draw_from = random.Random(0)
    board = []
    for number in range(40):
        rate, word = draw_from.random(), draw_from.choice(["cosine", "constant"])
        board.append(entry(number, rate**2, optimizer__lr=rate, schedule=word, seed=1))
    shares = importance(board)
    assert shares.keys() == {"optimizer.lr", "schedule"}, "what never varied is left out"
    assert shares["optimizer.lr"] > 0.9 and sum(shares.values()) == pytest.approx(1)


def test_with_few_trials_or_one_result_nothing_is_said_of_importance() -> None:
    few = [entry(n, n / 4, optimizer__lr=n) for n in range(4)]
    assert importance(few) == {}
    assert importance([entry(n, 0.5, optimizer__lr=n) for n in range(10)]) == {}


def test_only_pictures_with_something_to_show_are_drawn(read: Read) -> None:  # noqa: F811
    search = Search.create(read())
    (search.folder / "epochs.png").write_bytes(b"of an earlier look")
    board = [entry(n, n / 9, n + 1.0, optimizer__lr=10.0**-n) for n in range(9)]
    drawn = draw(search, board)
    assert {path.name for path in drawn} == {"lr.png", "curves.png", "pareto.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert not (search.folder / "epochs.png").exists()
    assert draw(search, []) == []


def test_a_setting_that_was_not_searched_is_the_jobs(read: Read, tmp_path: Path) -> None:  # noqa: F811
    (architecture,) = read().architectures
    assert value_of(architecture.job, entry(0, 0.5, optimizer__lr=0.3), "optimizer.lr") == 0.3
    assert value_of(architecture.job, entry(0, 0.5), "optimizer.lr") == 0.05
    assert value_of(architecture.job, entry(0, 0.5), "optimizer.none") is None
