"""Every file in jobs/ is a job that would start, and says what it reaches."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.load import load_job
from raycnn.config.schema import JobSpec
from raycnn.config.search import load_search
from raycnn.runs.preflight import check_job
from raycnn.search.preflight import check_search
from tests.support.jobs import JOBS, ROOT, SEARCHES
from tests.support.runs import train


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_checks(path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCNN_DATA", str(real_data))
    assert check_job(load_job(path)).parameters > 10_000


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_named_after_its_file_and_says_what_it_reaches(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert load_job(path).name == path.stem
    assert any("%" in line for line in head) and any("CPU" in line for line in head)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_checks(path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCNN_DATA", str(real_data))
    found = load_search(path)
    check_search(found)
    assert all(a.space for a in found.architectures) and path.read_text().startswith("#")


Shipped = Callable[..., JobSpec]


@pytest.fixture
def shipped(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shipped:
    """A job of jobs/ by its name, with changes, on the real data and in the test's own folder."""
    monkeypatch.setenv("RAYCNN_DATA", str(real_data))

    def load(name: str, *changes: str) -> JobSpec:
        return load_job(ROOT / "jobs" / f"{name}.yaml", [*changes, f"storage.path={tmp_path}"])

    return load


def test_lenet_learns_the_real_mnist(shipped: Shipped) -> None:
    """Four epochs of the modern variant on a tenth of it: the test is of all 10,000."""
    changes = ["data.limit=6000", "train.epochs=4", "train.batch_size=64", "optimizer.lr=0.05"]
    modern = "model={name: lenet, activation: relu, pool: max}"
    result = train(shipped("lenet-mnist", *changes, modern)).result() or {}
    assert result["test"]["count"] == 10_000
    assert result["test"]["acc1"] > 0.9


@pytest.mark.slow
def test_lenet_mnist_reaches_what_it_says(shipped: Shipped) -> None:
    result = train(shipped("lenet-mnist")).result() or {}
    assert result["test"]["acc1"] >= 0.985


@pytest.mark.slow
def test_alexnet_trains_on_the_real_cifar10(shipped: Shipped) -> None:
    changes = ["data.limit=128", "train.epochs=1", "train.batch_size=32"]
    rows = train(shipped("alexnet-cifar10", *changes)).rows()
    assert 2 < float(rows[0]["train/loss"]) < 2.7
