"""Runs of two workers on Ray: started, looked for among the processes, and compared."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from tests.support.processes import ended, workers
from tests.support.runs import numbers, same, weights

MakeJob = Callable[..., JobSpec]


def long(job: MakeJob) -> JobSpec:
    """Some seconds of training by two workers, with a checkpoint now and then."""
    return job(
        data__limit=None, train__epochs=60, storage__every_steps=7, train__batch_size=64,
        schedule="constant", workers__count=2, workers__cpus=1,
    )  # fmt: skip


def start(run: Run, folder: Path, *changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raycnn", "resume", str(run.location), *changes],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def pids(run: Run, rank: int) -> list[int]:
    """Of every process that was this rank, in order."""
    log = run.folder / "logs" / f"rank-{rank}.log"
    text = log.read_text() if log.exists() else ""
    return [int(pid) for pid in re.findall(r"rank \d of \d, process (\d+)", text)]


def having_loaded(driver: subprocess.Popen[str], library: str) -> set[int]:
    """The driver and the processes that Ray has started for it, as far as they use a library."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            ours = os.getsid(int(folder.name)) == driver.pid
            if ours and library in (folder / "maps").read_text():
                found.add(int(folder.name))
    return found


def assert_unbroken(run: Run, tmp_path: Path, limit_s: float = 300) -> None:
    """Its end is that of two processes here that nothing happened to."""
    other = Run.create(run.job().change({"workers.address": None}))
    two = workers(2, other.folder, cwd=tmp_path, verb="resume")
    assert ended(two, limit_s)[0] == {0}
    assert same(weights(other), weights(run)) and same(weights(other, "best"), weights(run, "best"))
    assert numbers(other) == numbers(run)
    own, others = run.per_class(), other.per_class()
    assert own and others and own["confusion"] == others["confusion"]
