"""Half an hour of harm to a cluster of three nodes (RAYCNN_SOAK_MINUTES: longer, or shorter).

Workers, nodes and drivers are killed, drivers told to end, and the disk of the run is filled, in an
order that is drawn; after each, what a user would do. `pytest -s` shows what is done.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks import namespaces
from benchmarks.cluster import WHY_NOT, Cluster, running
from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import Resumed
from tests.support.faults import mounted
from tests.support.ray_runs import assert_unbroken
from tests.support.runs import happened

MakeJob = Callable[..., JobSpec]

MINUTES = float(os.environ.get("RAYCNN_SOAK_MINUTES", "30"))
SEED = 0
PATIENCE_S = 300  # for a job to go on, or to end
CALM_S = 8  # of training before the next harm, at most

pytestmark = [
    pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT)),
    pytest.mark.timeout(MINUTES * 60 * 2 + 1800),
]  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mounted before there are nodes, so that all of them have it."""
    with mounted(tmp_path / "disk", "64m") as disk:
        yield disk


@pytest.fixture
def cluster(cache: Path, disk: Path) -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


class Soak:
    """A run, whoever drives it at the moment, and what is done to both."""

    def __init__(self, run: Run, cluster: Cluster, disk: Path):
        self.run, self.cluster, self.disk = run, cluster, disk
        self.chance, self.began = random.Random(SEED), time.monotonic()
        self.done = Counter[str]()
        self.resume()
        self.wait_for(lambda: len(run.rows()) > 0)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {what}", flush=True)

    def resume(self, *changes: str) -> None:
        self.driver = self.cluster.driver(self.run, *changes)

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Resumed, where a driver has given up."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, self.run.events()[-5:]
            if self.driver.poll() is not None:
                self.ended(1)
                self.resume()
            time.sleep(0.1)

    def ended(self, code: int) -> None:
        _, errors = self.driver.communicate(timeout=PATIENCE_S)
        assert self.driver.returncode == code, errors
        assert "Traceback" not in errors, errors
        self.say(f"the driver ended with {code}: {errors.strip()}")

    def do(self, harm: str) -> None:
        """And wait until the job has gone on, and saved."""
        self.say(f"{len(self.run.rows())} epochs; {harm}")
        self.done[harm] += 1
        before = self.gone_on()
        getattr(self, harm)()
        self.wait_for(lambda: self.gone_on() > before)
        last = self.last()
        self.wait_for(lambda: self.last() != last)

    def last(self) -> str | None:
        return checkpoint_folder.read_index(self.run.checkpoints).get("last")

    def gone_on(self) -> int:
        return len(happened(self.run, Resumed))

    def kill_a_worker(self) -> None:
        for pid in self.chance.choice(self.cluster.at_work()).runs("RayTrainWorker"):
            os.kill(pid, signal.SIGKILL)

    def kill_a_node(self) -> None:
        self.chance.choice(self.cluster.at_work()).kill()
        self.cluster.fill()

    def kill_the_driver(self) -> None:
        self._signal(signal.SIGKILL)
        self.driver.communicate(timeout=PATIENCE_S)
        self.resume()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self.ended(130)

    def stop_the_driver(self) -> None:
        self.stop()
        self.resume()

    def fill_the_disk(self) -> None:
        filler, deadline = self.disk / "filler", time.monotonic() + PATIENCE_S
        while self.driver.poll() is None:  # also what is freed after
            assert time.monotonic() < deadline
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            time.sleep(0.05)
        self.ended(3)
        filler.unlink()
        self.resume()

    def _signal(self, number: signal.Signals) -> None:
        inside = namespaces.child_of(self.driver.pid)
        assert inside
        os.kill(inside, number)


HARMS = [
    "kill_a_worker", "kill_a_node", "kill_the_driver", "stop_the_driver", "fill_the_disk",
]  # fmt: skip


def test_whatever_is_killed_the_weights_are_the_unbroken_ones(
    job: MakeJob, cluster: Cluster, disk: Path, tmp_path: Path
) -> None:
    cluster.fill()
    run = Run.create(
        job(
            data__limit=None, data__transforms=[{"name": "resize", "size": 32}],
            train__epochs=100_000, train__batch_size=64, schedule="constant",
            storage__path=str(disk / "runs"), storage__every_steps=7,
            workers__count=2, workers__cpus=1,
        )
    )  # fmt: skip
    soak = Soak(run, cluster, disk)
    while time.monotonic() - soak.began < 60 * MINUTES:
        for harm in soak.chance.sample(HARMS, len(HARMS)):
            time.sleep(soak.chance.uniform(0, CALM_S))
            soak.do(harm)
    soak.stop()
    soak.say(f"{dict(soak.done)}")
    soak.resume(f"train.epochs={len(run.rows()) + 1}")
    soak.ended(0)
    assert_unbroken(run, tmp_path, limit_s=60 * MINUTES + 600)
    soak.say(f"the weights of {len(run.rows())} epochs are the unbroken run's")
