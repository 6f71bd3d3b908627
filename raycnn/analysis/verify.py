"""Verify exact resume with a user's job, on the user's machine.

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
from raycnn.errors import JobFailed, SpecError
from raycnn.runs.directory import Run
from raycnn.runs.environment import environment
from raycnn.runtime import device
from raycnn.training import checkpoint
from raycnn.training.preflight import resolve_job

EPOCHS, STEPS = 3, 12  # of the shortened job: at most so many steps an epoch
TRIES = 3
POLL_S = 0.002
TOLERANCE = 1e-3  # tolerance between numbers of workers, relative to the largest weight
CLOCK = {"images_per_s", "time_s", "memory_mib"}  # metrics that may differ between equal runs
STDERR = "stderr"  # the file of the workers' stderr in the run folder

Log = Callable[[str], None]
Processes = list[subprocess.Popen[bytes]]


@dataclass(frozen=True)
class VerifyCheck:
    """A comparison, and whether it held; `kept` is None where it was not possible."""

    text: str
    passed: bool | None


@dataclass(frozen=True)
class VerifyReport:
    job: str
    how: str
    """A description of the training."""
    environment: dict[str, Any]
    findings: list[VerifyCheck]

    @property
    def passed(self) -> bool:
        return all(finding.passed is not False for finding in self.findings)


def verify(job: JobSpec, run: Run | None, tell: Log) -> VerifyReport:
    """Verify exact resume of a job, and the checksums of the checkpoints of `run` if given.

    `tell` is called with progress messages. Raises JobFailed when the job cannot be trained.
    """
    kind = device.find(job.workers.device)
    most = max(2, kind.count()) if kind.name == "cpu" else kind.count()
    count = min(job.workers.max_count, most)
    other = 1 if count > 1 else 2
    findings = [_whole(run)] if run else []
    with TemporaryDirectory(prefix="raycnn-verify-", ignore_cleanup_errors=True) as folder:
        short = shortened_job(job, Path(folder), count, max(count, other))
        tell(f"training it unbroken, {_workers(count)}")
        unbroken = _trained(Run.create(short))
        steps = int(unbroken.rows()[0]["step"])
        if steps < 2:
            raise SpecError("leaves one step an epoch, and no middle of it", "train.batch_size")
        tell("training it again, to be killed")
        saved = short.change({"storage.every_steps": steps // 2})
        broken, done = _killed(saved)
        tell(f"killed after {done} of {steps} steps of epoch {EPOCHS}; resuming")
        how = f"killed (SIGKILL) after {done} of {steps} steps of epoch {EPOCHS}, and resumed"
        findings += [*_same(unbroken, _trained(broken), how), _counted(broken)]
        if other > min(most, job.train.batch_size):
            lacks = f"there is one {kind.name} only" if other > most else "a batch is one image"
            findings.append(VerifyCheck(f"{_workers(other)}: {lacks}", None))
        else:
            tell(f"training it with {_workers(other)}")
            moved = _trained(Run.create(saved.change({"workers.count": other})))
            findings += [_close(unbroken, moved, job), _counted(moved)]
    how = f"{EPOCHS} epochs of {steps} steps of {job.train.batch_size} images, {_workers(count)}"
    return VerifyReport(job.name, f"{how}, on {kind.name}", environment(), findings)


def shortened_job(job: JobSpec, folder: Path, count: int, most: int) -> JobSpec:
    """Return a job of a few steps on `count` workers, with CPUs for `most` workers each."""
    images = int(STEPS * job.train.batch_size / (1 - job.data.val))
    return job.change(
        {
            "data.limit": min(images, job.data.limit or images),
            "train.epochs": EPOCHS,
            "train.patience": None,
            "stages": [stage for stage in job.tree()["stages"] if stage["epoch"] < EPOCHS],
            "storage.path": str(folder),
            "storage.every_steps": None,
            "workers.count": count,
            "workers.cpus": max(1, device.DEVICE_KINDS["cpu"].count() // most),
            "workers.launcher": "ray" if job.workers.launcher == "ray" else "local",
        }
    )


def _start(run: Run) -> Processes:
    """Start the workers of a run as torchrun would, or one process that starts them on Ray."""
    workers = run.job().workers
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(workers.max_count),
            **meeting,
        }
        for rank in range(workers.max_count)
    ]
    alone = workers.max_count == 1 or workers.launcher == "ray"
    command = [sys.executable, "-m", "raycnn", "resume", str(run.folder)]
    with (run.folder / STDERR).open("a") as said:
        return [
            subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=said)
            for env in ([{}] if alone else ranks)
        ]


def _end(processes: Processes) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _trained(run: Run) -> Run:
    """Train a run to its end, and return it. Raises JobFailed with the workers' message."""
    processes = _start(run)
    try:
        for process in processes:
            process.wait()
    finally:
        _end(processes)
    if not run.result():
        said = (run.folder / STDERR).read_text().strip().removeprefix("raycnn: ")
        raise JobFailed(f"the job cannot be trained here: {said}")
    return run


def _killed(job: JobSpec) -> tuple[Run, int]:
    """Return a run that was killed during its last epoch, and the saved steps of that epoch."""
    for _ in range(TRIES):
        run = Run.create(job)
        processes = _start(run)
        try:
            while all(process.poll() is None for process in processes) and not _saved_steps(run):
                time.sleep(POLL_S)
        finally:
            _end(processes)
        if (done := _saved_steps(run)) and not run.result():
            return run, done
    raise JobFailed(f"{TRIES} times the job was done before it could be killed: try again")


def _saved_steps(run: Run) -> int:
    """Return the number of saved steps of the last epoch."""
    epoch, _, step = (checkpoint.read_index(run.checkpoints).get("last") or "0-0").partition("-")
    return int(step) if int(epoch) == EPOCHS - 1 else 0


def _whole(run: Run) -> VerifyCheck:
    """Check the checksums of a run's checkpoints."""
    paths = sorted(run.checkpoints.glob("[0-9]*-[0-9]*"))
    faults = [fault for path in paths if (fault := checkpoint.verify_checkpoint(path))]
    text = f"{len(paths) - len(faults)} of {len(paths)} checkpoints of {run.name} are intact"
    return VerifyCheck("; ".join([text, *faults]), not faults)


def _same(unbroken: Run, broken: Run, how: str) -> list[VerifyCheck]:
    """Compare weights, optimizer state, metrics and test of two runs bit for bit."""
    tensors, differ, furthest = 0, 0, 0.0
    for name in checkpoint.TENSORS:
        one, other = (checkpoint.read_tensors(r.weights("last") / name) for r in (unbroken, broken))
        tensors += len(one)
        differ += sum(not torch.equal(one[key], other[key]) for key in one)
        furthest = max(furthest, _distance(one, other))
    said = f"all {tensors} tensors of network and optimizer are the unbroken run's, bit for bit"
    if differ:
        said = f"{differ} of {tensors} tensors differ from the unbroken run's, by {furthest:.1g}"
    figures = [
        (
            [{key: row[key] for key in row if key not in CLOCK} for row in run.rows()],
            (run.per_class() or {})["confusion"],
        )
        for run in (unbroken, broken)
    ]
    alike = figures[0] == figures[1]
    return [
        VerifyCheck(f"{how}: {said}", not differ),
        VerifyCheck(
            f"and so are the metrics of {EPOCHS} epochs and the test, digit for digit", alike
        ),
    ]


def _counted(run: Run) -> VerifyCheck:
    """Compare the number of images seen, by the last mid-epoch checkpoint, with that expected."""
    name = checkpoint.read_index(run.checkpoints)["previous"]
    state, job = checkpoint.read_state(run.checkpoints / str(name)), run.job()
    due = min(state["step"] * job.train.batch_size, state["about"]["images"]["train"])
    seen = state["seen"]["count"]
    where = f"in {state['step']} steps of epoch {state['epoch'] + 1}"
    return VerifyCheck(
        f"{_workers(job.workers.max_count)}: {seen} of {due} images {where}", seen == due
    )


def _close(one: Run, other: Run, job: JobSpec) -> VerifyCheck:
    """Compare the weights of two runs up to the order of float summation."""
    text = f"{_workers(other.job().workers.max_count)} instead"
    model = resolve_job(job).model
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        return VerifyCheck(f"{text}: not compared, for a batch norm sees each worker's share", None)
    paths = (run.weights("last") / checkpoint.MODEL for run in (one, other))
    tensors = [checkpoint.read_tensors(path) for path in paths]
    largest = max(tensor.abs().max().item() for tensor in tensors[0].values())
    apart = _distance(*tensors) / largest
    said = f"{text}: weights within {apart:.1g} of the largest (at most {TOLERANCE:g}: float sums)"
    return VerifyCheck(said, apart <= TOLERANCE)


def _distance(one: Any, other: Any) -> float:
    return max(((one[key] - other[key]).abs().max().item() for key in one), default=0.0)


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"
