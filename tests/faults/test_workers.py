"""What happens to workers, each a process: they hang, raise, and are ended. Without Ray."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.training.callbacks import Failed, Resumed
from tests.support.faults import two_with
from tests.support.processes import ended, wait_for, workers
from tests.support.runs import distance, happened, numbers, train, weights

MakeJob = Callable[..., JobSpec]


def long(job: MakeJob, **changes: object) -> JobSpec:
    """Some seconds of training: long enough to be met in the middle of it."""
    return job(
        data__limit=None, train__epochs=60, train__batch_size=64, storage__every_steps=7, **changes
    )


def test_a_rank_that_hangs_is_named_with_its_stack(job: MakeJob, tmp_path: Path) -> None:
    run = Run.create(long(job, workers__count=2, workers__timeout_s=10))
    waiting, hung = two_with("time.sleep(999)", run, tmp_path)
    said = waiting.communicate()[1]
    assert hung.poll() is None, "it hangs still"
    hung.kill()
    hung.communicate()
    assert waiting.returncode == 1 and "Traceback" not in said
    assert "rank 1 was unresponsive for 10 s (workers.timeout_s)" in said
    assert "in harm" in said and "in harmed" in said, "the innermost frames"
    (failed,) = happened(run, Failed)
    assert failed.kind == "WorkerLost" and failed.error in said
    beats = run.heartbeats()
    assert beats[0].failure == "timeout" and not beats[1].failure
    assert beats[1].epoch >= 1 and beats[1].pid == hung.pid


LATE = """
import atexit, os, sys, time
import torch
from torch import distributed
from raycnn.runtime import distributed as workers
from raycnn.cli import main

def leave_with_one_under_way(leave=workers.destroy_process_group):
    group = distributed.group.WORLD

    @atexit.register
    def begin_one_more():
        time.sleep(2 * (os.environ["RANK"] == "0"))
        group.allreduce([torch.ones(5)])
        print("begun", file=sys.stderr)

    leave()

workers.destroy_process_group = leave_with_one_under_way
main()
"""


def test_a_collective_that_ends_with_the_process_does_not_abort_it(
    job: MakeJob, tmp_path: Path
) -> None:
    """Its thread would let go of a tensor while Python is being torn down."""
    run = Run.create(job(workers__count=2, train__epochs=1))
    codes, said = ended(workers(2, run.folder, cwd=tmp_path, verb="resume", program=("-c", LATE)))
    assert codes == {0}, said
    assert said.count("begun") == 2


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [
        ("raise ValueError('a bug')", 1, "rank 1 failed: ValueError: a bug"),
        ("raise DataError('a.png: is no picture')", 4, "rank 1 failed: a.png: is no picture"),
    ],
    ids=["a-bug", "bad-data"],
)
def test_what_ends_one_rank_is_what_is_said(
    job: MakeJob, tmp_path: Path, harm: str, code: int, said: str
) -> None:
    """And not what the others' connections come to when it is gone."""
    run = Run.create(long(job, workers__count=2))
    left, harmed = two_with(harm, run, tmp_path)
    first, second = (process.communicate()[1] for process in (left, harmed))
    assert (left.returncode, harmed.returncode) == (1, code), first + second
    assert first.startswith(f"raycnn: {said}") and "Traceback" not in first
    assert ("Traceback" in second) == (code == 1), "of a bug, its own"
    assert happened(run, Failed)[-1].error == said and run.state() == "failed"
    assert run.heartbeats()[1].failure == "error"


@pytest.mark.slow
def test_a_job_goes_on_with_4_then_2_then_3_workers(job: MakeJob, tmp_path: Path) -> None:
    """SIGTERM reaches one of the four, and all save and stop; of the two one is killed."""
    spec = long(job, optimizer__lr=0.01).change({"train.epochs": 12})
    run = Run.create(spec)
    four = workers(4, run.folder, "workers.count=4", cwd=tmp_path, verb="resume")
    wait_for(lambda: len(run.rows()) >= 2, four[0])
    four[3].terminate()
    codes, said = ended(four)
    assert codes == {130} and said.count("stopped on request, and saved") == 1, said
    done = len(run.rows())
    two = workers(2, run.folder, "workers.count=2", cwd=tmp_path, verb="resume")
    wait_for(lambda: len(run.rows()) >= done + 2, two[0])
    two[1].kill()
    codes, said = ended(two)
    assert codes == {1, -signal.SIGKILL} and "Traceback" not in said, said
    assert "raycnn: another worker exited without an error: killed" in said
    assert len(run.rows()) < 12
    three = workers(3, run.folder, "workers.count=3", cwd=tmp_path, verb="resume")
    codes, said = ended(three)
    assert codes == {0}, said

    alone = train(spec)
    assert [row["step"] for row in numbers(run)] == [row["step"] for row in numbers(alone)]
    assert distance(weights(alone), weights(run)) < 1e-3
    assert len(happened(run, Resumed)) == 2


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("Ctrl-C", marks=pytest.mark.slow)])
def test_torchrun_that_is_told_to_end_has_its_workers_save(
    job: MakeJob, tmp_path: Path, how: str
) -> None:
    """A terminal sends Ctrl-C to all of them, and torchrun then ends its workers."""
    run = Run.create(long(job, workers__count=2))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun = subprocess.Popen(
        [sys.executable, *command, "-m", "raycnn", "resume", str(run.folder)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(run.rows()) >= 2, torchrun)
    if how == "Ctrl-C":
        os.killpg(torchrun.pid, signal.SIGINT)
    else:
        torchrun.terminate()
    _, said = torchrun.communicate()
    assert "stopped on request, and saved" in said
    assert run.state() == "stopped" and len(run.rows()) < 60
    log = (run.folder / "logs" / "rank-1.log").read_text()
    assert "stopped on request, and saved" in log


def test_workers_that_do_not_all_come_are_waited_for_no_longer_than_said(
    job: MakeJob, tmp_path: Path
) -> None:
    run = Run.create(job(workers__count=2, workers__timeout_s=10))
    alone = workers(1, run.folder, cwd=tmp_path, verb="resume", missing=1)
    codes, said = ended(alone)
    assert codes == {5} and "Traceback" not in said
    assert "2 workers did not all connect within 10 s (workers.timeout_s)" in said
