"""`raycnn tune` without Ray: what it refuses, plans and shows."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console
from ruamel.yaml import YAML

from raycnn.cli.search_view import (
    LiveSearchView,
    PlainSearchView,
    SearchProgress,
    changes_text,
    progress_table,
    rounded_duration,
    show_leaderboard,
    show_next,
)
from raycnn.config.load import load_job
from raycnn.config.search import Pool, TrialKey
from raycnn.launch import trial
from raycnn.runs.directory import Run
from raycnn.search.folder import Search
from raycnn.search.leaderboard import leaderboard, to_tree, write_leaderboard
from raycnn.training.callbacks import TrainingStarted
from tests.support.images import write_pictures
from tests.support.jobs import ROOT, SEARCHES
from tests.support.processes import Call
from tests.support.runs import happened
from tests.support.searches import BASE, Read, go

QUICK = ROOT / "jobs" / "quickstart.tune.yaml"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "--resume RUN"),
        ([QUICK, "--resume", "quickstart"], 2, "leave out"),
        (["--resume", "quickstart", "tune.trials=6"], 2, "leave out tune.trials=6"),
        (["--resume", "none"], 2, "unknown search 'none'"),
        (["missing.yaml"], 2, "cannot read missing.yaml"),
        ([ROOT / "jobs" / "quickstart.yaml"], 2, "tune: is missing"),
        ([QUICK, "optimizer.lr=0"], 2, "optimizer.lr: must be greater than 0"),
        ([QUICK, "tune.scheduler=pbt"], 2, "tune.scheduler.interval: is missing"),
        ([QUICK, "tune.pools=[{device: npu}]"], 5, "1 workers of 1 CPU and 1 NPU each do not fit"),
        ([QUICK, "tune.pools=[{device: cpu}, {device: npu}]"], 5, "1 NPU each do not fit"),
        ([QUICK, "tune.pools=[{device: cpu, cpus: 999}]", "--dry-run"], 5, "999 CPU each do not fit"),
        ([QUICK, "storage.path=file/runs"], 3, "storage.path: "),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused_at_once(
    call: Call,
    tmp_path: Path,
    words: list[object],
    code: int,
    said: str,
) -> None:
    (tmp_path / "file").touch()
    ended, _, err = call("tune", *words)
    assert ended == code and said in err and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_search_is_not_a_job(call: Call) -> None:
    for verb in ("train", "check"):
        code, _, err = call(verb, QUICK)
        assert code == 2 and f"{QUICK} is a search; run it with `raycnn tune {QUICK}`" in err


def test_what_is_left_of_a_search_is_said_without_training_it(call: Call, search: Search) -> None:
    code, out, _ = call("tune", "--resume", search.folder, "--dry-run")
    assert code == 0 and out == "lenet-002\n1 of 3 trials are left\n"
    assert not search.trials()[2].ended


def test_a_dry_run_says_the_trials_the_devices_and_the_time(
    call: Call,
    tmp_path: Path,
) -> None:
    words = ["tune.pools=[{device: cpu}]", "tune.trials=2", "tune.concurrency=1", "--dry-run"]
    code, out, _ = call("tune", QUICK, *words)
    assert code == 0
    assert "lenet: 2 trials of lenet\n  lenet-000  lr=" in out
    assert "1 at once, on cpu\nabout " in out and "of training, if no trial is stopped" in out
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def search(read: Read) -> Search:
    text = "tune: {space: {optimizer.lr: {grid: [0.05, 1e30, 0.1]}}}\n"
    made = Search.create(read(text, base=BASE.replace("epochs: 3", "epochs: 1")))
    (architecture,) = made.spec.architectures
    for number, rate in enumerate([0.05, 1e30]):
        one = made.begin(TrialKey(architecture, number), {"optimizer.lr": rate}, Pool(device="cpu"))
        trial.run_trial(one, partial(trial.fit_trial_alone, made, one, torch.device("cpu"), None))
    made.begin(TrialKey(architecture, 2), {"optimizer.lr": 0.1}, Pool(device="cpu"))
    return made


def test_the_json_of_a_search_is_its_leaderboard_alone(call: Call, search: Search) -> None:
    search.trials()[2].update(state="failed", reason="ended by hand")
    code, out, err = call("tune", "--resume", search.folder, "--json")
    found = json.loads(out)
    assert code == 0 and "lenet-000" in err and found.pop("search") == str(search.folder)
    write_leaderboard(search)
    assert found == json.loads((search.folder / "leaderboard.json").read_text())
    assert found["overall"] == "lenet-000" and len(found["trials"]) == 3
    code, _, err = call("tune", QUICK, "--json", "--retrain")
    assert code == 2 and "--retrain" in err


def test_a_search_killed_before_its_leaderboard_writes_it_when_resumed(
    call: Call, search: Search
) -> None:
    write_leaderboard(search)  # as it was before the last trial
    go(search, search.trials()[2])
    board = search.folder / "leaderboard.json"
    code, _, err = call("tune", "--resume", search.folder)
    assert code == 0 and err == ""
    assert json.loads(board.read_text()) == to_tree(search, leaderboard(search))
    assert (search.folder / "report.html").is_file()
    written = board.stat().st_mtime_ns
    assert call("tune", "--resume", search.folder)[0] == 0
    assert board.stat().st_mtime_ns == written, "only once"


def test_in_a_log_each_trial_that_ends_is_a_line(search: Search) -> None:
    console = Console(record=True, width=200)
    view = PlainSearchView(console)
    view.progress = SearchProgress(search)
    view.show(search, ["lenet-002"])
    view.show(search, [])
    first, second = console.export_text().splitlines()
    assert first.split()[:3] == ["1/3", "lenet-000", "done"] and "1/1 epochs" in first
    assert second.split()[:3] == ["2/3", "lenet-001", "failed"] and "is not finite" in second


def test_what_had_ended_before_is_not_told_again(search: Search) -> None:
    console = Console(record=True)
    PlainSearchView(console).show(search, [])
    assert not console.export_text()


def test_on_a_terminal_one_table_says_how_far_it_is(search: Search) -> None:
    console = Console(record=True, width=120, force_terminal=True)
    progress = SearchProgress(search)
    progress.update()
    console.print(progress_table(progress, search, ["lenet-002"]))
    table = console.export_text().splitlines()
    assert table[1].split()[:5] == ["lenet", "3", "1", "0", "1"]
    assert table[1].endswith("lr=0.05")
    assert table[2].strip() == "lenet-002  epoch 0/1"
    assert table[3].startswith("2 of 3 trials have ended, about ")
    with LiveSearchView(console) as view:
        view.log("said above it")
        view.show(search, ["lenet-002"])


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "3 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert rounded_duration(seconds) == said


def test_the_schema_of_a_search_accepts_every_search_and_no_slip(call: Call) -> None:
    code, out, _ = call("schema", "--search")
    assert code == 0
    drawn = json.loads(out)
    for path in SEARCHES:
        tree = YAML(typ="safe").load(path.read_text())
        jsonschema.validate(tree, drawn)
    for slip in (
        {"trails": 3},
        {"scheduler": {"name": "pbt", "intervall": 1}},
        {"pools": [{}], "space": {"optimizer.lr": {"range": [1, 2]}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": "x", "tune": slip}, drawn)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"tune": {}, "architectures": [{"model": "lenett"}]}, drawn)


def test_a_list_of_runs_tells_of_searches_too(
    call: Call,
    search: Search,
    tmp_path: Path,
) -> None:
    code, out, _ = call("list", "runs", "--runs", tmp_path / "runs")
    (line,) = (line for line in out.splitlines() if line.startswith("tiny/1"))
    assert code == 0 and line.startswith("tiny/1  stopped  2 of 3  val/acc1 0.")
    assert line.endswith(", lenet-000")
    code, out, _ = call("list", "searches", "--runs", tmp_path / "runs", "--json")
    (summary,) = json.loads(out)
    best = summary.pop("best")
    assert code == 0 and f"val/acc1 {best:.4g}" in line
    assert summary == {
        "name": "tiny/1", "state": "stopped", "ended": 2, "trials": 3, "metric": "val/acc1",
        "winner": "lenet-000", "error": None,
    }  # fmt: skip
    with search.lock():
        _, out, _ = call("list", "runs", "--runs", tmp_path / "runs")
    assert "running" in out


def test_a_leaderboard_fits_80_columns_and_ends_with_the_best(search: Search) -> None:
    board = leaderboard(search)
    best = replace(
        board[0],
        changes={"optimizer.lr": 0.05, "schedule": {"name": "one_cycle", "pct_start": 0.3}},
    )
    console = Console(record=True, width=80)
    show_leaderboard(console, search, [best, *board[1:]] * 10)
    lines = console.export_text().splitlines()
    rows = [line for line in lines if "lenet-00" in line and not line.startswith("best")]
    assert len(rows) == 10 and all(len(line) <= 80 for line in rows)
    assert rows[-1].split()[:3] == ["1", "lenet-000", "done"]
    assert rows[-1].endswith(changes_text(best.changes))
    assert lines[-1].startswith("best lenet: lenet-000")
    wide = Console(record=True, width=160)
    show_leaderboard(wide, search, [best, *board[1:]])
    assert {"95", "epochs", "time"} <= set(wide.export_text().split())


def test_a_search_ends_with_what_to_do_next(search: Search, tmp_path: Path) -> None:
    console = Console(record=True, width=80)
    show_next(console, search, leaderboard(search))
    assert f"raycnn tune --resume {search.folder}" in console.export_text().replace("\n", "")


def test_without_ray_trials_are_trained_here_and_retrained_with_a_word_on_validation(
    call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.tune.yaml"
    path.write_text(
        BASE.replace("STORAGE", str(tmp_path / "runs")).replace(
            "epochs: 3", "epochs: 1, patience: 9"
        )
        + "workers: {launcher: local}\n"
        "tune: {pools: [{device: cpu, cpus: 1}], space: {optimizer.lr: {grid: [0.05, 0.1]}}}\n"
    )
    code, out, err = call("tune", path)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1/2", "2/2"]
    assert "--retrain" in lines[-1]
    code, out, err = call("tune", "--resume", tmp_path / "runs" / "tiny" / "1", "--retrain")
    assert code == 0, err
    assert "no validation" in out and "test " in out
    run = Run.find("tiny-lenet", str(tmp_path / "runs"))
    (started,) = happened(run, TrainingStarted)
    assert started.images == {"train": 200, "val": 0, "test": 357}
    assert run.job().train.patience is None and run.result()


def test_past_its_time_budget_a_search_ends_well_and_a_resumed_one_has_as_long_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.tune.yaml"
    path.write_text(BASE.replace("STORAGE", str(tmp_path / "runs")) + LOCAL)
    is_over = iter([False])
    with monkeypatch.context() as patch:  # it is over when the first trial has begun
        patch.setattr(trial, "is_past", lambda deadline: deadline and next(is_over, True))
        code, _, err = call("tune", path, "tune.time_budget_s=1000", "train.epochs=1")
    assert code == 0, err
    search = Search(tmp_path / "runs" / "tiny" / "1")
    assert [one.ended for one in search.trials()] == [False]
    began, deadlines = time.time(), set()

    def is_past(deadline: float) -> bool:
        deadlines.add(deadline)
        return False

    monkeypatch.setattr(trial, "is_past", is_past)
    code, _, err = call("tune", "--resume", search.folder)
    assert code == 0, err
    assert [one.ended for one in search.trials()] == [True, True]
    (deadline,) = deadlines
    assert deadline > began + 1000


LOCAL = "workers: {launcher: local, timeout_s: 700}\ntune: {space: {optimizer.lr: {grid: [0.05, 0.1]}}}\n"


def test_trials_trained_here_read_the_data_of_the_spec(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures", ["cat", "dog"], 12)
    monkeypatch.setenv("RAYCNN_DATA", str(tmp_path / "elsewhere"))
    data = f"{{name: folder, root: '{tmp_path / 'pictures'}', size: 12}}"
    text = BASE.replace("{name: digits, limit: 200, transforms: [{name: resize, size: 12}]}", data)
    (tmp_path / "tiny.tune.yaml").write_text(
        text.replace("STORAGE", str(tmp_path / "runs")) + LOCAL
    )
    code, out, err = call("tune", "tiny.tune.yaml", "--dry-run")
    assert code == 0 and "\n1 at once" in out, err
    code, out, err = call("tune", "tiny.tune.yaml", "train.epochs=1")
    assert code == 0 and "failed" not in out, err


def test_a_trial_that_continues_keeps_its_timeout_and_its_jobs_own_fold(read: Read) -> None:
    search = Search.create(read(LOCAL, "data.fold=[1, 3]", "train.epochs=1"))
    key = search.spec.trials()[0]
    for cpus in (1, 2):
        one = search.begin(key, {"optimizer.lr": 0.05}, Pool(device="cpu", cpus=cpus))
        assert one.run.job().workers.timeout_s == 700
    trial.run_trial(one, partial(trial.fit_trial_alone, search, one, torch.device("cpu"), None))
    write_leaderboard(search)
    assert load_job(search.best_job_path("lenet")).data.fold == [1, 3]
