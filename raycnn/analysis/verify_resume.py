"""Verify exact resume for `raycnn verify`, with a user's job on the user's machine.

A shortened job is trained three times: uninterrupted; killed during an epoch and resumed; and with
another number of workers. Each worker is a separate process, in a temporary folder.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from raycnn.config.schema import JobSpec
from raycnn.errors import JobFailed, SpecError, plural
from raycnn.runs.directory import Run
from raycnn.runs.environment import environment
from raycnn.runs.preflight import resolve_job
from raycnn.runtime import device
from raycnn.training import checkpoint, checkpoint_folder

EPOCHS, STEPS = 3, 12  # of the shortened job: epochs, and maximum steps per epoch
MAX_ATTEMPTS = 3  # to kill the job before it ends
POLL_S = 0.002
TOLERANCE = 1e-3  # tolerance between numbers of workers, relative to the largest weight
CLOCK = {"images_per_s", "time_s", "memory_mib"}  # metrics that may differ between equal runs
STDERR = "stderr"  # the file of the workers' stderr in the run folder

Log = Callable[[str], None]
Processes = list[subprocess.Popen[bytes]]


@dataclass(frozen=True)
class VerifyCheck:
    """One comparison and its outcome."""

    text: str
    passed: bool | None
    """None if the comparison was not possible."""


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of all comparisons, with the job and the environment they hold for."""

    job: str
    how: str
    """A description of the training."""
    environment: dict[str, Any]
    findings: list[VerifyCheck]

    @property
    def passed(self) -> bool:
        return all(finding.passed is not False for finding in self.findings)


def verify_resume(job: JobSpec, run: Run | None, log: Log) -> VerifyReport:
    """Verify exact resume of a job, and the checksums of the checkpoints of `run` if given.

    `log` is called with progress messages. Raises JobFailed if the job cannot be trained.
    """
    kind = device.find(job.workers.device)
    max_workers = max(2, kind.count()) if kind.name == "cpu" else kind.count()
    count = min(job.workers.max_count, max_workers)
    other = 1 if count > 1 else 2
    findings = [_check_checksums(run)] if run else []
    with TemporaryDirectory(prefix="raycnn-verify-", ignore_cleanup_errors=True) as folder:
        short = shortened_job(job, Path(folder), count, max(count, other))
        log(f"training it uninterrupted, with {_workers(count)}")
        uninterrupted = _train(Run.create(short))
        steps = int(uninterrupted.rows()[0]["step"])
        if steps < 2:
            raise SpecError("leaves one step per epoch, so none can be cut", "train.batch_size")
        log("training it again, to be killed")
        saved = short.change({"storage.every_steps": steps // 2})
        killed, done = _train_and_kill(saved)
        log(f"killed after {done} of {steps} steps of epoch {EPOCHS}; resuming")
        how = f"killed (SIGKILL) after {done} of {steps} steps of epoch {EPOCHS}, and resumed"
        findings += [
            *_check_equal(uninterrupted, _train(killed), how),
            _check_image_count(killed),
        ]
        if other > min(max_workers, job.train.batch_size):
            one_device = other > max_workers
            reason = f"there is only one {kind.name}" if one_device else "a batch is one image"
            findings.append(VerifyCheck(f"{_workers(other)}: {reason}", None))
        else:
            log(f"training it with {_workers(other)}")
            resized = _train(Run.create(saved.change({"workers.count": other})))
            findings += [_check_close(uninterrupted, resized, job), _check_image_count(resized)]
    how = f"{EPOCHS} epochs of {steps} steps of {job.train.batch_size} images, {_workers(count)}"
    return VerifyReport(job.name, f"{how}, on {kind.name}", environment(), findings)


def shortened_job(job: JobSpec, folder: Path, count: int, max_count: int) -> JobSpec:
    """Return a job of a few steps on `count` workers, with the CPUs of `max_count` workers each."""
    images = int(STEPS * job.train.batch_size / (1 - job.data.val))
    return job.change(
        {
            "data.limit": min(images, job.data.limit or images),
            "train.epochs": EPOCHS,
            "train.patience": None,
            "stages": [stage for stage in job.tree()["stages"] if stage["epoch"] < EPOCHS],
            "storage.path": str(folder),
            "storage.every_steps": None,
            "storage.report": False,
            "workers.count": count,
            "workers.cpus": max(1, device.DEVICE_KINDS["cpu"].count() // max_count),
            "workers.launcher": "ray" if job.workers.launcher == "ray" else "local",
        }
    )


def _start(run: Run) -> Processes:
    """Start the workers of a run as torchrun would, or one process that starts them on Ray."""
    workers = run.job().workers
    with socket.create_server(("127.0.0.1", 0)) as server:  # to find a free port
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    ranks = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(workers.max_count),
            **rendezvous,
        }
        for rank in range(workers.max_count)
    ]
    one_process = workers.max_count == 1 or workers.launcher == "ray"
    command = [sys.executable, "-m", "raycnn", "resume", str(run.folder)]
    with (run.folder / STDERR).open("a") as stderr_file:
        return [
            subprocess.Popen(
                command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=stderr_file
            )
            for env in ([{}] if one_process else ranks)
        ]


def _kill(processes: Processes) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _train(run: Run) -> Run:
    """Train a run to its end, and return it. Raises JobFailed with the workers' message."""
    processes = _start(run)
    try:
        for process in processes:
            process.wait()
    finally:
        _kill(processes)
    if not run.result():
        message = (run.folder / STDERR).read_text().strip().removeprefix("raycnn: ")
        raise JobFailed(f"the job cannot be trained here: {message}")
    return run


def _train_and_kill(job: JobSpec) -> tuple[Run, int]:
    """Return a run that was killed during its last epoch, and the saved steps of that epoch."""
    for _ in range(MAX_ATTEMPTS):
        run = Run.create(job)
        processes = _start(run)
        try:
            while all(process.poll() is None for process in processes) and not _saved_steps(run):
                time.sleep(POLL_S)
        finally:
            _kill(processes)
        if (done := _saved_steps(run)) and not run.result():
            return run, done
    raise JobFailed(f"the job ended before it could be killed, {MAX_ATTEMPTS} times: try again")


def _saved_steps(run: Run) -> int:
    """Return the number of saved steps of the last epoch."""
    last = checkpoint_folder.read_index(run.checkpoints).get("last") or "0-0"
    epoch, _, step = last.partition("-")
    return int(step) if int(epoch) == EPOCHS - 1 else 0


def _check_checksums(run: Run) -> VerifyCheck:
    """Check the checksums of a run's checkpoints."""
    paths = run.all_checkpoints()
    problems = [problem for path in paths if (problem := checkpoint_folder.verify_checkpoint(path))]
    text = f"{len(paths) - len(problems)} of {len(paths)} checkpoints of {run.name} are intact"
    return VerifyCheck("; ".join([text, *problems]), not problems)


def _check_equal(uninterrupted: Run, resumed: Run, how: str) -> list[VerifyCheck]:
    """Compare weights, optimizer state, metrics and test of two runs bit for bit."""
    runs = uninterrupted, resumed
    tensors, differ, max_diff = 0, 0, 0.0
    for name in checkpoint_folder.TENSORS:
        one, other = (checkpoint.read_tensors(run.weights("last") / name) for run in runs)
        tensors += len(one)
        differ += sum(not torch.equal(one[key], other[key]) for key in one)
        max_diff = max(max_diff, _max_diff(one, other))
    text = f"all {tensors} tensors of network and optimizer are equal bit for bit"
    if differ:
        text = f"{differ} of {tensors} tensors differ from the uninterrupted run, by {max_diff:.1g}"
    one_result, other_result = (
        (
            [{key: row[key] for key in row if key not in CLOCK} for row in run.rows()],
            (run.per_class() or {})["confusion"],
        )
        for run in runs
    )
    metrics_equal = one_result == other_result
    return [
        VerifyCheck(f"{how}: {text}", not differ),
        VerifyCheck(f"the metrics of {EPOCHS} epochs and the test are equal too", metrics_equal),
    ]


def _check_image_count(run: Run) -> VerifyCheck:
    """Compare the number of images trained on, by the last mid-epoch checkpoint, with the steps."""
    name = checkpoint_folder.read_index(run.checkpoints)["previous"]
    state, job = checkpoint_folder.read_state(run.checkpoints / str(name)), run.job()
    expected = min(state["step"] * job.train.batch_size, state["about"]["images"]["train"])
    count = state["seen"]["count"]
    where = f"in {state['step']} steps of epoch {state['epoch'] + 1}"
    text = f"{_workers(job.workers.max_count)}: {count} of {expected} images {where}"
    return VerifyCheck(text, count == expected)


def _check_close(one: Run, other: Run, job: JobSpec) -> VerifyCheck:
    """Compare the weights of two runs up to the order of float summation."""
    text = f"{_workers(other.job().workers.max_count)} instead"
    model = resolve_job(job).model
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        reason = "batch norm depends on the share of each worker"
        return VerifyCheck(f"{text}: not compared, since {reason}", None)
    paths = (run.weights("last") / checkpoint_folder.MODEL for run in (one, other))
    tensors = [checkpoint.read_tensors(path) for path in paths]
    largest = max(tensor.abs().max().item() for tensor in tensors[0].values())
    relative_diff = _max_diff(*tensors) / largest
    text += f": weights within {relative_diff:.1g} of the largest (float sums: up to {TOLERANCE:g})"
    return VerifyCheck(text, relative_diff <= TOLERANCE)


def _max_diff(one: Any, other: Any) -> float:
    return max(((one[key] - other[key]).abs().max().item() for key in one), default=0.0)


def _workers(count: int) -> str:
    return f"{count} {plural('worker', count)}"
