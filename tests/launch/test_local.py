"""Several workers without Ray: processes that meet as torchrun's do, over gloo."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted
from raycnn.runs.directory import Run
from tests.support.processes import ended, raycnn, wait_for, workers
from tests.support.runs import distance, numbers, same, train, weights

MakeJob = Callable[..., JobSpec]

ALEXNET = {
    "model": {"name": "alexnet", "form": "small"}, "data.limit": 24, "data.val": 0.0,
    "train.batch_size": 10, "train.epochs": 2, "optimizer.lr": 1e-3,
}  # fmt: skip


def spec_file(job: JobSpec) -> Path:
    """Written where its run folders will be."""
    return Run.create(job).folder / "job.yaml"


def latest(job: JobSpec) -> Run:
    return Run.find(job.name, job.storage.path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(ALEXNET, marks=pytest.mark.slow),
        {
            "data.limit": 61, "data.val": 0.0, "train.batch_size": 20,
            "train.distillation": {"teacher": "teacher"},
        },
    ],
    ids=["lenet", "alexnet-with-dropout", "61-images-and-a-teacher"],
)  # fmt: skip
def test_two_workers_equal_one(job: MakeJob, tmp_path: Path, changes: dict[str, object]) -> None:
    train(job(name="teacher", train__epochs=1))
    one = train(job(**changes))
    shared = job(**changes, workers__count=2)
    assert ended(workers(2, spec_file(shared), cwd=tmp_path))[0] == {0}
    two = latest(shared)
    assert distance(weights(one), weights(two)) < 1e-5
    for ours, theirs in zip(numbers(one), numbers(two), strict=True):
        assert ours["step"] == theirs["step"]
        assert float(ours["train/loss"]) == pytest.approx(float(theirs["train/loss"]), abs=1e-5)
    assert [(run.result() or {})["test"]["count"] for run in (one, two)] == [357, 357]


@pytest.mark.slow
def test_three_workers_resume_bit_for_bit(job: MakeJob, tmp_path: Path) -> None:
    """With three, the order in which gradients are summed shows."""
    broken = Run.create(job(workers__count=3, train__epochs=40, schedule="constant"))
    three = workers(3, broken.folder, cwd=tmp_path, verb="resume")
    wait_for(lambda: len(broken.rows()) >= 2, three[0])
    broken.request_stop()
    codes, said = ended(three)
    assert codes == {130} and said.count("stopped on request") == 1
    epochs = len(broken.rows()) + 2
    unbroken = Run.create(broken.job())
    for run in (broken, unbroken):
        ending = workers(3, run.folder, f"train.epochs={epochs}", cwd=tmp_path, verb="resume")
        codes, said = ended(ending)
        assert codes == {0}, said
    assert same(weights(unbroken), weights(broken))
    assert numbers(unbroken) == numbers(broken)


def test_a_job_goes_on_with_another_number_of_workers(job: MakeJob, tmp_path: Path) -> None:
    one = train(job())
    moved = Run.create(job())
    with pytest.raises(Interrupted):
        train(job(), moved, stop_at=8)
    two = workers(2, moved.folder, "workers.count=2", cwd=tmp_path, verb="resume")
    assert ended(two)[0] == {0}
    assert distance(weights(one), weights(moved)) < 1e-5
    assert [row["step"] for row in numbers(moved)] == ["6", "12", "18"]


def test_all_workers_stop_on_nan(job: MakeJob, tmp_path: Path) -> None:
    spec = job(workers__count=2, optimizer__lr=1e30, schedule="constant")
    codes, said = ended(workers(2, spec_file(spec), cwd=tmp_path))
    assert codes == {1}
    assert len(re.findall(r"raycnn: the loss is not finite at step", said)) == 1, "one rank speaks"
    assert "Traceback" not in said
    assert latest(spec).state() == "failed"


def test_torchrun_itself_starts_workers(job: MakeJob, tmp_path: Path) -> None:
    spec = job(workers__count=2, train__epochs=1)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "raycnn", "train", str(spec_file(spec))],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("357 of 357 images") == 1, "one rank speaks"
    run = latest(spec)
    assert sorted(path.name for path in run.folder.glob("logs/*.log")) == [
        "rank-0.log",
        "rank-1.log",
    ]


def test_a_wrong_number_of_processes_is_said(job: MakeJob, tmp_path: Path) -> None:
    done = raycnn(
        "train", spec_file(job()), "workers.count=2", "workers.launcher=local", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "workers.count: 2 workers are requested, this process is 1" in done.stderr


def long(job: MakeJob) -> JobSpec:
    """Some seconds of training: long enough to be met in the middle of it."""
    return job(
        data__limit=None, train__epochs=60, storage__every_steps=7, train__batch_size=64,
        schedule="constant",
    )  # fmt: skip


def begin(spec: JobSpec, folder: Path, epochs: int) -> tuple[subprocess.Popen[str], Run]:
    """Start training and wait until so many epochs are done."""
    run = Run.create(spec)
    process = subprocess.Popen(
        [sys.executable, "-m", "raycnn", "resume", str(run.folder)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(run.rows()) >= epochs, process)
    return process, run


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name
)
def test_a_job_that_is_ended_goes_on_as_if_it_had_not_been(
    job: MakeJob, tmp_path: Path, number: signal.Signals
) -> None:
    spec = long(job).change({"workers.cpus": 1})
    process, run = begin(spec, tmp_path, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    if number != signal.SIGKILL:
        assert "stopped on request, and saved" in said and "Traceback" not in said
    assert len(run.rows()) < 60 and run.state() == "stopped"
    epochs = len(run.rows()) + 3
    assert raycnn("resume", run.folder, f"train.epochs={epochs}", cwd=tmp_path).returncode == 0
    unbroken = train(spec.change({"train.epochs": epochs}))
    assert same(weights(unbroken), weights(run))
    assert numbers(unbroken) == numbers(run)


def test_ctrl_c_twice_stops_now(job: MakeJob, tmp_path: Path) -> None:
    """The second one comes while a step is under way, for these take a second each."""
    spec = job(
        model={"name": "alexnet", "form": "small"}, data__transforms=[{"name": "resize", "size": 32}],
        data__limit=None, train__batch_size=256, optimizer__lr=1e-3,
    )  # fmt: skip
    run = Run.create(spec)
    process = subprocess.Popen(
        [sys.executable, "-m", "raycnn", "resume", str(run.folder)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not run.progress():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # two at once would count as one
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert "raycnn: stopped at once" in said and "saved" not in said


def test_a_run_is_trained_by_one_process_at_a_time(job: MakeJob, tmp_path: Path) -> None:
    process, run = begin(long(job), tmp_path, 1)
    assert run.state() == "running"
    second = raycnn("resume", run.folder, cwd=tmp_path)
    process.terminate()
    process.communicate(timeout=60)
    assert second.returncode == 3 and "is being trained by another process" in second.stderr


def test_a_full_disk_ends_the_job_with_its_last_checkpoint_whole(
    job: MakeJob, tmp_path: Path
) -> None:
    """A limit on the size of a file stands in for the disk: the log fits, a checkpoint does not."""
    run = train(job(train__epochs=1))
    code = f"""
import resource, signal, sys
from raycnn.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch, raycnn.training.loop
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = ["raycnn", "resume", {str(run.folder)!r}, "train.epochs=2"]
main()
"""
    before = weights(run)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "cannot save a checkpoint" in done.stderr and "Traceback" not in done.stderr
    assert same(before, weights(run))


def test_a_log_that_cannot_be_written_does_not_stop_training(job: MakeJob) -> None:
    spec = job()
    run = Run.create(spec)
    (run.folder / "metrics.csv").mkdir()  # cannot be replaced by a file
    (run.folder / "logs" / "rank-0.log").mkdir()
    (run.folder / "logs" / "tensorboard").touch()
    train(spec, run)
    assert run.result()
