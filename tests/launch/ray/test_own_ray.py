"""raycnn inside a program that has its own Ray, an event loop, and threads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run

pytestmark = pytest.mark.ray

MakeJob = Callable[..., JobSpec]

# The loop runs while a training goes on in a thread beside it.
PROGRAM = """
import asyncio, sys, threading
from pathlib import Path
import ray

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
from raycnn.config.schema import Workers
from raycnn.launch import dispatch, launcher
from raycnn.runs.directory import Run

# Other machines may join it later, and files are served to them; so far the only node is this one.
assert launcher.can_span_machines(Workers(count=2)) and not launcher.is_remote(Workers(count=2))
assert not launcher.can_span_machines(Workers())

class Quiet:
    def on_event(self, event):
        pass

def train(folder):
    run = Run(Path(folder))
    dispatch.train(run.job(), lambda: run, Quiet())

async def main():
    ticks = 0
    beside = asyncio.create_task(asyncio.to_thread(train, sys.argv[1]))
    while not beside.done():
        await asyncio.sleep(0.1)
        ticks += 1
    await beside
    assert ticks > 10, ticks

asyncio.run(main())
assert ray.is_initialized() and ray.get(ray.remote(lambda: 7).remote()) == 7
assert not [a for a in threading.enumerate() if a.name.startswith("raycnn")]
ray.shutdown()
"""


@pytest.mark.slow
def test_a_programs_own_ray_is_used_and_left_running(job: MakeJob, tmp_path: Path) -> None:
    """Called beside a running event loop, from another thread than the main one."""
    run = Run.create(job(workers__count=2, workers__cpus=1, train__epochs=2))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, run.folder],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run.state() == "done" and len(run.rows()) == 2
