"""One job on Ray that loses its workers in every way, and Ray itself. It takes minutes."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.namespaces import children_of
from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.training.callbacks import WorkersRestarted
from tests.support.processes import ended, raycnn, wait_for, workers
from tests.support.ray_runs import long, pids, start
from tests.support.runs import happened, numbers, same, weights

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

MakeJob = Callable[..., JobSpec]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_job_that_loses_rank_0_all_workers_and_its_ray_ends_with_the_unbroken_weights(
    job: MakeJob, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """First a worker is stopped: it is named within the time limit, ended, and the job tried again."""
    spec = long(job).change(
        {
            "train.epochs": 10_000,
            "workers.timeout_s": 20,
            "failure.retries": 5,
        }
    )
    run = Run.create(spec)
    driver = start(run, tmp_path)
    processes.append(driver)

    def go_on(tries: int) -> None:
        """Until so many processes were rank 0, and the last of them has done two epochs."""
        wait_for(lambda: len(pids(run, 0)) == tries, driver, 600)
        done = len(run.rows())
        wait_for(lambda: len(run.rows()) >= done + 2, driver, 600)

    go_on(1)
    os.kill(pids(run, 1)[-1], signal.SIGSTOP)
    go_on(2)
    assert any("rank 1 was unres" in event.error for event in happened(run, WorkersRestarted))
    os.kill(pids(run, 0)[-1], signal.SIGKILL)
    go_on(3)
    for rank in (0, 1):
        os.kill(pids(run, rank)[-1], signal.SIGKILL)
    go_on(4)
    assert len(happened(run, WorkersRestarted)) == 3
    (control,) = (pid for pid in children_of(driver.pid) if "gcs_server" in command_of(pid))
    os.kill(control, signal.SIGKILL)
    driver.communicate(timeout=120)
    assert driver.returncode == 1, "Ray ends a driver that has been without a head for a minute"
    assert len(run.rows()) < 10_000

    epochs = len(run.rows()) + 5
    assert raycnn("resume", run.folder, f"train.epochs={epochs}", cwd=tmp_path).returncode == 0
    unbroken = Run.create(spec.change({"train.epochs": epochs}))
    assert ended(workers(2, unbroken.folder, cwd=tmp_path, verb="resume"))[0] == {0}
    assert same(weights(unbroken), weights(run)) and numbers(unbroken) == numbers(run)
