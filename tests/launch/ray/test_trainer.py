"""Real Ray: its processes, killed and asked too much of. Each start takes Ray some 20 s."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from benchmarks.cluster import TOKEN
from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.search.folder import Search
from raycnn.training.callbacks import CheckpointSaved, EpochEnded, Resumed, WorkersRestarted
from tests.support.jobs import ROOT
from tests.support.multi_label import write_csv
from tests.support.processes import ended, free_port, raycnn, wait_for, workers
from tests.support.ray_runs import having_loaded, long, pids, start
from tests.support.runs import distance, happened, numbers, same, train, weights
from tests.support.s3 import Server
from tests.support.searches import Read

pytestmark = pytest.mark.ray

MakeJob = Callable[..., JobSpec]


def test_each_epoch_is_reported_to_ray_with_the_checkpoint_of_the_run(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray: what it would be given is recorded."""
    from raycnn.launch.ray import entry

    reports = []
    monkeypatch.setattr(
        entry.ray.train, "report", lambda row, saved, **_: reports.append((row["epoch"], saved))
    )
    run = Run.create(job())
    reporter = entry.RayReporter(run)
    reporter.on_event(CheckpointSaved(epoch=1, step=0, name="00001-00000000", best=True))
    reporter.on_event(EpochEnded(metrics={"epoch": 1}))
    ((epoch, saved),) = reports
    assert epoch == 1 and saved.path == str(run.checkpoints / "00001-00000000")


def test_killed_workers_and_a_stopped_driver_end_with_the_unbroken_weights(
    job: MakeJob, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """A worker is killed in mid-epoch, and Ray starts it again; later Ctrl-C, and `resume`.

    That, and the unbroken run, are trained without Ray: the launcher makes no difference.
    Ray's other processes, for which the workers wait, do not import torch.
    """
    spec = long(job)
    run = Run.create(spec)
    driver = start(run, tmp_path)
    processes.append(driver)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    assert having_loaded(driver, "libtorch") == {driver.pid, *pids(run, 0), *pids(run, 1)}
    os.kill(pids(run, 1)[0], signal.SIGKILL)
    wait_for(lambda: len(pids(run, 1)) == 2, driver)
    wait_for(lambda: len(run.rows()) >= 6, driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: Ray's processes are of the group
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "stopped on request, and saved" in said and "Traceback" not in said
    assert 6 <= len(run.rows()) < 60
    assert len(happened(run, Resumed)) == 1
    assert happened(run, WorkersRestarted)

    epochs = len(run.rows()) + 3
    unbroken = Run.create(spec)
    for one in (run, unbroken):
        two = workers(2, one.folder, f"train.epochs={epochs}", cwd=tmp_path, verb="resume")
        assert ended(two)[0] == {0}
    assert same(weights(unbroken), weights(run))
    assert numbers(unbroken) == numbers(run)


SLOW_TRACKER = """
import os, time
api = type("Api", (), {"api_key": None})
Settings = lambda **options: None

class Run:
    id, summary = "1", {}

    def log(self, metrics, step):
        pass

    def finish(self, exit_code):
        time.sleep(15)
        open(os.environ["FINISHED"], "w").close()

def init(**options):
    return Run()
"""


@pytest.mark.slow
def test_the_first_worker_takes_its_time_at_the_end(job: MakeJob, tmp_path: Path) -> None:
    """A stand-in for wandb takes longer than workers are given once a job has ended."""
    (tmp_path / "wandb.py").write_text(SLOW_TRACKER)
    spec = job(workers__count=2, trackers=["wandb"], train__epochs=1, storage__report=True)
    yaml_file.write(tmp_path / "tiny.yaml", spec.tree())
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "FINISHED": str(tmp_path / "finished")}
    done = raycnn("train", tmp_path / "tiny.yaml", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    (run,) = Run.all(spec.storage.path)
    assert (tmp_path / "finished").exists() and (run.folder / "report.html").exists()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Ray that asks for a token, which this process and its children have."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in TOKEN.items():
            patch.setenv(key, value)
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
             "--include-dashboard=false", f"--ray-client-server-port={free_port()}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with head:
            deadline = time.monotonic() + 90
            here = tmp_path_factory.mktemp("address")
            while raycnn("doctor", "--address", f"127.0.0.1:{port}", cwd=here).returncode:
                assert head.poll() is None and time.monotonic() < deadline
            yield f"workers.address=127.0.0.1:{port}"
            assert head.poll() is None, "the cluster goes on"
            head.terminate()


def test_a_job_runs_on_a_cluster_that_is_there_and_a_wrong_token_is_refused(
    job: MakeJob, tmp_path: Path, address: str
) -> None:
    spec = job(workers__count=2, workers__cpus=1)
    file = Run.create(spec).folder / "job.yaml"
    done = raycnn("check", file, address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if Version(version("ray")) >= Version("2.52"):  # which brought tokens
        wrong = raycnn("train", file, address, cwd=tmp_path, RAY_AUTH_TOKEN="b" * 64)
        assert wrong.returncode == 5 and "token" in wrong.stderr
        assert "Traceback" not in wrong.stderr
    large = raycnn("train", file, address, "workers.count=9", cwd=tmp_path)
    assert large.returncode == 5 and "9 workers of 1 CPU each do not fit" in large.stderr
    before = len(Run.all(spec.storage.path))
    done = raycnn("train", file, address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(Run.all(spec.storage.path)) == before + 1


@pytest.mark.slow  # two trainings: tests/launch/test_local.py has workers with a teacher, without Ray
def test_students_and_multi_label_jobs_come_to_the_same_on_two_workers(
    job: MakeJob, tmp_path: Path, address: str
) -> None:
    """Two workers differ from one process by the order of sums, and here in no prediction."""
    teacher = train(job(name="teacher"))
    write_csv(tmp_path / "marked")
    csv = {"name": "csv", "root": str(tmp_path / "marked"), "test": 0.25}
    student = job(name="student", train__distillation={"teacher": str(teacher.folder)})
    for spec in (student, job(name="marked", data=csv)):
        alone = train(spec)
        run = Run.create(spec.change({"workers.count": 2, "workers.cpus": 1}))
        done = raycnn("resume", run.folder, address, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert distance(weights(alone), weights(run)) < 1e-5
        tests = [(each.result() or {})["test"] for each in (alone, run)]
        loss, expected = (test.pop("loss") for test in tests)
        assert loss == pytest.approx(expected, rel=1e-4)
        clock = {"images_per_s", "ms_per_image", "data_ms_per_image"}
        assert all(tests[0][key] == tests[1][key] for key in tests[0].keys() - clock)


def test_a_users_mistake_is_said_once_and_not_tried_again(
    job: MakeJob, tmp_path: Path, address: str
) -> None:
    spec = job(workers__count=2, workers__cpus=1, optimizer__lr=1e30, schedule="constant")
    run = Run.create(spec)
    done = raycnn("resume", run.folder, address, cwd=tmp_path)
    assert done.returncode == 1
    assert "raycnn: the loss is not finite at step" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(pids(run, 0)) == len(pids(run, 1)) == 1


@pytest.mark.slow
def test_a_worker_that_is_lost_too_often_ends_the_job(
    job: MakeJob, tmp_path: Path, address: str, processes: list[subprocess.Popen[str]]
) -> None:
    spec = long(job).change({"failure.retries": 0})
    run = Run.create(spec)
    driver = start(run, tmp_path, address)
    processes.append(driver)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    os.kill(pids(run, 0)[0], signal.SIGKILL)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "workers were lost more than 0 times (failure.retries)" in said
    assert "Traceback" not in said
    assert run.state() == "stopped"


@pytest.mark.slow
def test_a_job_and_a_search_at_an_s3_path_equal_those_in_a_folder(
    job: MakeJob,
    s3: Server,
    tmp_path: Path,
    address: str,
    processes: list[subprocess.Popen[str]],
    read: Read,  # noqa: F811
) -> None:
    """Of two workers, one is killed; the search has one process for each of two trials."""
    uri = s3.uri(s3.bucket())
    spec = long(job).change({"train.epochs": 20})
    run = Run.create(spec.change({"storage.path": uri}))
    driver = start(run, tmp_path, address)
    processes.append(driver)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    os.kill(pids(run, 1)[0], signal.SIGKILL)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert happened(run, WorkersRestarted) and happened(run, Resumed)
    shutil.rmtree(run.folder)
    run = Run.open(str(run.location))
    unbroken = Run.create(spec)
    assert ended(workers(2, unbroken.folder, cwd=tmp_path, verb="resume"))[0] == {0}
    assert same(weights(unbroken), weights(run)) and numbers(unbroken) == numbers(run)

    read()
    tune = partial(raycnn, "tune", tmp_path / "tiny.tune.yaml", cwd=tmp_path)
    for done in (tune(address, f"storage.path={uri}"), tune("workers.launcher=local")):
        assert done.returncode == 0, done.stderr
    here, there = (Search.find("tiny", root) for root in (str(tmp_path / "runs"), uri))
    for one, other in zip(here.trials(), there.trials(), strict=True):
        assert numbers(one.run) == numbers(other.run)
        assert same(weights(one.run), weights(other.run))


def test_asking_for_more_than_there_is_is_refused_with_a_table(
    job: MakeJob, tmp_path: Path
) -> None:
    spec = job(workers__count=32, workers__cpus=64)
    done = raycnn("train", Run.create(spec).folder / "job.yaml", cwd=tmp_path)
    assert done.returncode == 5
    assert "32 workers of 64 CPU each do not fit" in done.stderr
    assert re.search(r"this machine +\d+ +0 +0", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("127.0.0.1:1", 5),
        ("nowhere.invalid:6379", 5),
        ("127.0.0.1:SILENT", 5),
        ("http://x:8265", 2),
    ],
)
def test_a_cluster_that_does_not_answer_is_said_within_seconds(
    job: MakeJob, address: str, code: int
) -> None:
    """Within ten of the question: the rest is imports. One listens, and never says a word."""
    from raycnn.errors import RaycnnError
    from raycnn.launch.ray import connection

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = address.replace("SILENT", str(silent.getsockname()[1]))
        began = time.monotonic()
        with (
            pytest.raises(RaycnnError) as caught,
            connection.connected(job(workers__address=address).workers),
        ):
            pass
        assert time.monotonic() - began < 10
    assert caught.value.exit_code == code and address in str(caught.value)
