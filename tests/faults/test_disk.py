"""Disks that are small, and run full: real ones of a megabyte, where this process may mount them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from raycnn.config.schema import JobSpec
from raycnn.config.search import load_search
from raycnn.errors import EnvironmentUnavailable
from raycnn.launch import dispatch
from raycnn.launch.worker import train_worker
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import FolderChannel
from raycnn.runs.preflight import check_job
from raycnn.search import leaderboard
from raycnn.search.folder import Search
from tests.support.faults import mounted
from tests.support.runs import numbers, same, train, weights
from tests.support.searches import BASE, SilentView

MakeJob = Callable[..., JobSpec]
LOCAL = """\
workers: {launcher: local, device: cpu}
tune: {space: {optimizer.lr: {grid: [0.01, 0.1, 1.0]}}}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


def fill(disk: Path) -> Path:
    """Leave not a byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError


def train_and_fill(job: JobSpec, run: Run, disk: Path, step: int) -> None:
    """Somebody else fills the disk when so many steps are done."""
    steps = iter(range(1, 10**6))

    def asked() -> bool:
        if next(steps) == step:
            fill(disk)
        return False

    train_worker(job, run, torch.device("cpu"), FolderChannel(run, 0, asked))


def test_too_small_a_disk_is_refused_before_anything_starts(job: MakeJob, disk: Path) -> None:
    spec = job(model={"name": "alexnet", "form": "small"}, storage__path=str(disk / "runs"))
    with pytest.raises(EnvironmentUnavailable, match=r"1.0 MB .*[\d,.]+ MB: 4 "):
        check_job(spec)
    assert not any(disk.iterdir())
    check_job(job(storage__path=str(disk / "runs")))


def test_a_run_that_goes_on_counts_the_checkpoints_it_has(job: MakeJob, disk: Path) -> None:
    spec = job(storage__path=str(disk))
    run = train(spec)
    filler = fill(disk)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 300_000)
    with pytest.raises(EnvironmentUnavailable):
        check_job(spec)
    check_job(spec, run=run)


def test_decoded_images_that_do_not_fit_are_refused_when_they_must_be_kept(
    job: MakeJob, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCNN_CACHE", str(disk))
    spec = job(data={"name": "synthetic", "train": 1000, "test": 100, "cache": "store"})
    with pytest.raises(EnvironmentUnavailable, match=r"data.cache: store: .*[\d.]+ MB"):
        train(spec)


def test_a_disk_that_runs_full_leaves_the_last_checkpoint_and_the_run_goes_on(
    job: MakeJob, disk: Path
) -> None:
    spec = job(storage__path=str(disk))
    run = Run.create(spec)
    with pytest.raises(
        EnvironmentUnavailable, match="checkpoint: .*No space left on device"
    ) as full:
        train_and_fill(spec, run, disk, step=8)
    assert f"`raycnn resume {run.folder}`" in str(full.value)
    assert run.weights("last").name == "00001-00000000"
    with pytest.raises(EnvironmentUnavailable):
        train(spec, run)
    (disk / "filler").unlink()
    train(spec, run)
    unbroken = train(job())
    assert same(weights(unbroken), weights(run)) and numbers(unbroken) == numbers(run)


def test_a_full_disk_for_logs_alone_does_not_stop_training(
    job: MakeJob, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = job()
    run = Run.create(spec)
    (run.folder / "logs").rmdir()
    (run.folder / "logs").symlink_to(disk)
    (run.folder / "events.jsonl").symlink_to(disk / "events.jsonl")
    train_and_fill(spec, run, disk, step=2)
    assert run.result() and len(run.rows()) == 3
    assert capfd.readouterr().err == ""
    assert run.state() == "done"


def test_a_disk_that_runs_full_fails_no_trial_of_a_search_which_goes_on(disk: Path) -> None:
    class View(SilentView):
        def show(self, search: Search, running: list[str]) -> None:
            if running == ["lenet-001"]:
                fill(disk)

    def run(folder: Path, view: SilentView) -> Search:
        file = folder / "tiny.tune.yaml"
        file.write_text(BASE.replace("path: STORAGE", f"path: {folder}, report: false") + LOCAL)
        spec = load_search(file)
        return dispatch.search(spec, lambda: Search.create(spec), view)

    with pytest.raises(EnvironmentUnavailable, match="No space left on device") as full:
        run(disk, View())
    (search,) = Search.all(str(disk))
    assert f"`raycnn tune --resume {search.folder}` continues" in str(full.value)
    assert "raycnn resume" not in str(full.value)
    assert [one.info.get("state") for one in search.trials()] == ["done", None]
    (disk / "filler").unlink()
    dispatch.search(search.spec, lambda: search, SilentView())
    assert [one.info["state"] for one in search.trials()] == ["done"] * 3
    assert leaderboard.is_written(search)
