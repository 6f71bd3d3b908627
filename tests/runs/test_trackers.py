"""Experiment trackers, for real, into local stores; each where its package is installed."""

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable
from raycnn.runs import trackers
from raycnn.runs.directory import Run
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start of a tracker takes its time on a busy machine."""
    monkeypatch.setattr(trackers, "CLOSE_S", 300)


class Broken(trackers.Tracker):
    name = package = "broken"

    def start(self) -> None:
        raise ConnectionError("no route to the server")


class Stuck(trackers.Tracker):
    name = package = "stuck"
    released = threading.Event()

    def start(self) -> None:
        self.released.wait(60)


def test_a_tracker_that_fails_or_hangs_never_stops_training(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Broken, "mlflow": Stuck})
    run = train(job(train__epochs=2, trackers=["wandb", "mlflow", "tensorboard"]))
    Stuck.released.set()
    assert run.state() == "done" and len(run.rows()) == 2
    said = _log_of(run)
    assert "no route to the server" in said and said.count("no route") == 1 and "stuck" in said


def test_tensorboard_is_written_where_it_is_named(job: MakeJob) -> None:
    events = "logs/tensorboard/events*"
    assert list(train(job(train__epochs=1)).folder.glob(events))
    assert not list(train(job(train__epochs=1, trackers=[])).folder.glob(events))


def test_a_tracker_that_is_not_installed_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnavailable, match="pip install trackio"):
        trackers.check_installed(["tensorboard", "trackio"])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_settings_metrics_and_the_test(job: MakeJob) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    run = train(job(train__epochs=2, trackers=["mlflow"]))
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == run.name and kept.info.status == "FINISHED"
    assert kept.data.params["optimizer.lr"] == "0.05" and kept.data.params["train.epochs"] == "2"
    losses = client.get_metric_history(kept.info.run_id, "train/loss")
    assert [m.value for m in losses] == [
        pytest.approx(float(row["train/loss"])) for row in run.rows()
    ]
    assert kept.data.metrics["test/acc1"] == pytest.approx(run.result()["test"]["acc1"])
    run.reopen(longer := run.job().change({"train.epochs": 3}))
    train(longer, run)
    (kept,) = client.search_runs([experiment.experiment_id])
    assert len(client.get_metric_history(kept.info.run_id, "train/loss")) == 3


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_settings_metrics_and_the_test(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which its import reads
    pytest.importorskip("trackio", reason="pip install trackio")
    run = train(job(train__epochs=2, trackers=["trackio"]))
    assert "trackio is off" not in _log_of(run)
    rows = _trackio_rows(tmp_path / "trackio")
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        pytest.approx(float(row["train/loss"])) for row in run.rows()
    ]
    assert any("test/acc1" in row for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_where_no_key_is_known(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(job(train__epochs=2, trackers=["wandb"]))
    assert "wandb is off" not in _log_of(run)
    (file,) = run.folder.glob("logs/wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1000


def _log_of(run: Run) -> str:
    return (run.folder / "logs" / "rank-0.log").read_text()


def _trackio_rows(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.rglob("*.db")
    with sqlite3.connect(file) as base:
        return [
            json.loads(row) for (row,) in base.execute("SELECT metrics FROM metrics ORDER BY id")
        ]
