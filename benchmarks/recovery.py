"""Measure how soon a job on Ray continues after a loss, and how many steps it does again.

    uv run python -m benchmarks.recovery [worker|node] [--kills N]

Two workers train on a cluster of three nodes, each with processes, a network and a disk of its own
(see namespaces.py). Ten times a worker is killed (SIGKILL), then ten
times a node with all its processes, so that the one which was idle takes its place; a new node
follows. Printed are the median and the 95th percentile of the seconds from the kill to the next
step, and of the steps from the last checkpoint to the one that was reached: one is saved every 10.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cluster import WHY_NOT, running
from benchmarks.namespaces import Machine
from raycnn.config.load import job_from_tree
from raycnn.runs.directory import Run
from raycnn.training.callbacks import Resumed

LIMIT_S = 300
PAUSE_S = 3  # of training before a kill
JOB = {
    "name": "recovery",
    "data": {"name": "digits", "transforms": [{"name": "resize", "size": 96}]},
    "model": "lenet",
    "optimizer": {"name": "sgd", "lr": 1e-3},
    "train": {"epochs": 100_000, "batch_size": 64},
    "workers": {"count": 2, "cpus": 1},
    "storage": {"every_steps": 10},
    "failure": {"retries": 1000},
}


class Watched:
    """A run that is training, observed through its folder."""

    def __init__(self, run: Run, driver: "subprocess.Popen[str]"):
        self.run, self.driver = run, driver
        self.wait_for(lambda: bool(run.rows()))
        self.epoch = int(run.rows()[0]["step"])

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not what():
            if self.driver.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"no recovery: {self.run.events()[-5:]}")
            time.sleep(0.01)

    def step(self) -> int:
        """Return the steps done, as last reported: at most a quarter of a second ago."""
        where = self.run.progress()
        return (where["epoch"] - 1) * self.epoch + where["step"] if where.get("epoch") else 0

    def gone_on(self) -> list[tuple[float, int]]:
        """Return the time and the steps done at each resume."""
        resumed = [event for event in self.run.events() if isinstance(event, Resumed)]
        return [(event.time, event.epoch * self.epoch + event.step) for event in resumed]

    def kill(self, how: Callable[[Machine], None], victim: Machine) -> tuple[float, int]:
        """Kill a machine or worker; return the seconds to the next step, and the steps lost."""
        count, killed = len(self.gone_on()), time.time()
        how(victim)
        reached = 0

        def again() -> bool:
            nonlocal reached
            reached = max(reached, self.step())
            return len(self.gone_on()) > count

        self.wait_for(again)
        at, base = self.gone_on()[-1]
        said = self.run.folder / "progress.json"
        self.wait_for(lambda: said.stat().st_mtime > at)
        # What was last said may be older than what was then saved.
        return said.stat().st_mtime - killed, max(reached - base, 0)


def kill_worker(machine: Machine) -> None:
    for pid in machine.runs("RayTrainWorker"):
        os.kill(pid, signal.SIGKILL)


HOW: dict[str, Callable[[Machine], None]] = {"worker": kill_worker, "node": Machine.kill}


def summary(what: str, found: list[tuple[float, int]]) -> dict[str, Any]:
    seconds, steps = (
        statistics.quantiles(values, n=20, method="inclusive")
        for values in zip(*found, strict=True)
    )
    return {
        "killed": what, "times": len(found),
        "seconds_p50": round(seconds[9], 1), "seconds_p95": round(seconds[18], 1),
        "steps_lost_p50": round(steps[9]), "steps_lost_p95": round(steps[18]),
    }  # fmt: skip


def measure(what: str, kills: int) -> None:
    with TemporaryDirectory() as folder, running() as cluster:
        cache = Path(folder, "cache")
        cache.mkdir()
        os.environ["RAYCNN_CACHE"] = str(cache)
        cluster.fill()
        run = Run.create(job_from_tree(JOB).change({"storage.path": f"{folder}/runs"}))
        watched, found = Watched(run, cluster.driver(run)), []
        for kill in range(kills):
            time.sleep(PAUSE_S)
            found.append(watched.kill(HOW[what], cluster.at_work()[kill % 2]))
            print(f"{what}: {found[-1][0]:.1f} s, {found[-1][1]} steps", file=sys.stderr)
            cluster.fill()
        print(json.dumps(summary(what, found)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=[*HOW], help="both, if left out")
    parser.add_argument("--kills", type=int, default=10, help="of each")
    args = parser.parse_args()
    if WHY_NOT:
        sys.exit(WHY_NOT)
    for what in [args.what] if args.what else HOW:
        measure(what, args.kills)


if __name__ == "__main__":
    main()
