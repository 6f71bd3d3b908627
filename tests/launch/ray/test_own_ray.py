"""raycnn inside a program that has its own Ray, an event loop, and threads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from tests.conftest import numbers, same, weights

pytestmark = pytest.mark.ray

MakeJob = Callable[..., JobSpec]

# The loop runs while one training goes on in its own thread, and another in a thread beside it.
PROGRAM = """
import asyncio, sys, threading
from pathlib import Path
import ray

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
from raycnn.launch import dispatch
from raycnn.runs.directory import Run

class Quiet:
    def on_event(self, event):
        pass

def train(folder):
    run = Run(Path(folder))
    dispatch.train(run.job(), lambda: run, Quiet())

async def main():
    ticks = 0
    in_loop, beside = sys.argv[1:]
    train(in_loop)
    other = asyncio.create_task(asyncio.to_thread(train, beside))
    while not other.done():
        await asyncio.sleep(0.1)
        ticks += 1
    await other
    assert ticks > 10, ticks

asyncio.run(main())
assert ray.is_initialized() and ray.get(ray.remote(lambda: 7).remote()) == 7
assert not [a for a in threading.enumerate() if a.name.startswith("raycnn")]
ray.shutdown()
"""


def test_a_programs_own_ray_is_used_and_left_running(job: MakeJob, tmp_path: Path) -> None:
    """Called from a running event loop, then from another thread than the main one."""
    spec = job(workers__count=2, workers__cpus=1, train__epochs=2)
    runs = [Run.create(spec), Run.create(spec)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(run.folder) for run in runs)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = runs
    assert first.state() == second.state() == "done"
    assert same(weights(first), weights(second)) and numbers(first) == numbers(second)
