"""Pictures of a search, and the numbers behind them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from raycnn.config.search import Domain
from raycnn.report import search as search_report
from raycnn.report.page import MAX_BYTES
from raycnn.report.search import (
    front,
    importance,
    place_in,
    value_of,
    write_search_report,
)
from raycnn.search.folder import Search
from raycnn.search.leaderboard import LeaderboardEntry
from tests.support.jobs import TINY
from tests.support.processes import Call
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
    text = write_search_report(search, board).read_text()
    drawn = list(search.folder.glob("*.png"))
    assert {path.name for path in drawn} == {"lr.png", "curves.png", "pareto.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert text.count("<svg") == 3
    assert "<svg" not in write_search_report(search, []).read_text()
    assert not list(search.folder.glob("*.png"))


def test_a_setting_that_was_not_searched_is_the_jobs(read: Read, tmp_path: Path) -> None:  # noqa: F811
    (architecture,) = read().architectures
    assert value_of(architecture.job, entry(0, 0.5, optimizer__lr=0.3), "optimizer.lr") == 0.3
    assert value_of(architecture.job, entry(0, 0.5), "optimizer.lr") == 0.05
    assert value_of(architecture.job, entry(0, 0.5), "optimizer.none") is None


def test_where_a_value_lies_in_its_space() -> None:
    assert place_in(Domain(loguniform=[0.001, 0.1]), 0.01) == pytest.approx(0.5)
    assert place_in(Domain(uniform=[1, 3]), 1.5) == pytest.approx(0.25)
    assert place_in(Domain(choice=["a", "b"]), "b") == 0.75
    assert place_in(Domain(choice=["a", "b"]), "c") is None


def test_a_page_tells_the_best_the_stopped_and_why(read: Read) -> None:
    search = Search.create(read())
    board = [entry(n, 0.9 - n / 9, n + 1.0, optimizer__lr=10.0**-n) for n in range(3)]
    board[1] = replace(board[1], state="stopped", reason="<script>late</script> & slow")
    board.append(replace(PLAIN, trial="lenet-009", state="failed", metric=None, low=None, high=None,
                         val_acc1=None, reason="not finite"))  # fmt: skip
    text = write_search_report(search, board).read_text()
    assert "90.00\N{NO-BREAK SPACE}%" in text or "90.00<small>%" in text
    assert "&lt;script&gt;late" in text and "<script>late" not in text and "not finite" in text
    assert "://" not in text and len(text.encode()) < MAX_BYTES
    assert f"raycnn tune --resume {search.name}" in text


def test_a_search_that_ends_has_a_page_and_one_that_fails_to_draw_it_still_ends(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {**TINY, "storage": {"path": str(tmp_path / "runs")}, "workers": {"launcher": "local"}}
    tree["train"] = {"epochs": 1, "batch_size": 32}
    tree["tune"] = {
        "pools": [{"device": "cpu", "cpus": 1}],
        "space": {"optimizer.lr": {"grid": [0.05, 0.1]}},
    }
    (tmp_path / "tiny.tune.yaml").write_text(json.dumps(tree))
    code, _, err = call("tune", tmp_path / "tiny.tune.yaml")
    assert code == 0, err
    page = tmp_path / "runs" / "tiny" / "1" / "report.html"
    assert "validation accuracy" in page.read_text()
    page.unlink()
    assert call("report", "tiny")[0] == 0 and page.exists()

    monkeypatch.setattr(search_report, "write_search_report", lambda *_: 1 / 0)
    notes: list[str] = []
    search_report.write_search_report_or_warn(Search.find("tiny"), [], notes.append)
    assert len(notes) == 1 and "raycnn report" in notes[0] and "tiny/1" in notes[0]
