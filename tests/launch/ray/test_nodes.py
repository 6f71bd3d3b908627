"""A cluster of several nodes, each with its own network, processes and disk; one of them dies.

The nodes are namespaces of Linux (see lab.py): to Ray, to gloo and to a job they are machines. Their
names lead to loopback, as Debian's installer leaves them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.search.folder import Search
from raycnn.training.callbacks import RestartPlanned, Resumed, StoppedOnRequest, WorkersRestarted
from tests.conftest import ended, happened, numbers, same, wait_for, weights, workers
from tests.launch.ray.test_trainer import TOKEN, pids
from tests.support import network
from tests.support.network import Machine, Network

WHY_NOT = network.why_not()
pytestmark = [
    pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT)),
]  # fmt: skip

PORT = 6379
LEAN = ["--include-log-monitor=false", "--disable-usage-stats", "--object-store-memory=100000000"]
NODES = 3
RAYLET = "raylet/raylet"

SEARCH = """\
name: lost
data: {name: digits, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 60, batch_size: 32}
tune: {space: {optimizer.lr: {grid: [0.01, 0.02, 0.03, 0.04]}}}
"""

MakeJob = Callable[..., JobSpec]


class Cluster:
    """A head without CPUs, where the drivers are, and nodes with one CPU each."""

    def __init__(self, network: Network, own: Path):
        self.network, self.own = network, own
        self.head, self.nodes = network.first, list[Machine]()
        self.processes: list[subprocess.Popen[str]] = []
        (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")
        self.address = f"{self.head.address}:{PORT}"
        self._start(self.head, "--head", f"--port={PORT}", "--include-dashboard=false", cpus=0)

    def fill(self, count: int = NODES) -> None:
        """Have as many nodes as there are to be."""
        for node in self.nodes:
            if node.is_up and not node.runs(RAYLET):
                node.kill()
        self.nodes = [node for node in self.nodes if node.is_up]
        while len(self.nodes) < count:
            node = self.network.add()
            node.hide(Path(os.environ["RAYCNN_CACHE"]))
            self._start(node, f"--address={self.address}", cpus=1)
            self.nodes.append(node)

    def hide(self, folder: Path) -> None:
        """Have every node see an empty one of its own there."""
        for node in self.nodes:
            node.hide(folder)

    def driver(self, run: Run, *changes: str) -> "subprocess.Popen[str]":
        return self.start("resume", run.folder, *changes)

    def start(self, verb: str, what: Path, *changes: str) -> "subprocess.Popen[str]":
        words = ["-m", "raycnn", verb, what, f"workers.address={self.address}", *changes]
        started = subprocess.Popen(
            self.head.inside(sys.executable, *words),
            env=os.environ | TOKEN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(started)
        return started

    def drain(self, node: Machine) -> None:
        """Tell Ray that the node will be taken away in half a minute."""
        there = f"""import time
import ray
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
ray.init("{self.address}", log_to_driver=False)
(its,) = (n["NodeID"] for n in ray.nodes() if n["NodeManagerAddress"] == "{node.address}")
control = ray._raylet.GcsClient(address="{self.address}")
preempted = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
print(control.drain_node(its, preempted, "taken away", int(time.time() + 30) * 1000))
"""
        subprocess.run(
            self.head.inside(sys.executable, "-c", there), env=os.environ | TOKEN, check=True
        )

    def at_work(self) -> list[Machine]:
        return [node for node in self.nodes if node.is_up and node.runs("RayTrainWorker")]

    def _start(self, machine: Machine, *options: str, cpus: int) -> None:
        """Ray gives itself 30 s for it, which on a busy machine is not always enough."""
        temporary = self.own / machine.address
        temporary.mkdir()
        machine.run(
            f"mount --bind '{self.own / 'hosts'}' /etc/hosts; "
            f"mkdir -p /tmp/ray; mount --bind '{temporary}' /tmp/ray"
        )
        ray = Path(sys.executable).with_name("ray")
        words = ["--block", f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", *LEAN]
        for _ in range(3):
            starting = subprocess.Popen(
                machine.inside(ray, "start", *words, *options),
                env=os.environ | TOKEN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            self.processes.append(starting)
            assert starting.stdout
            said = []
            for line in starting.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    return
        raise AssertionError("".join(said))


@contextmanager
def running() -> Iterator[Cluster]:
    with TemporaryDirectory() as own, network.network() as lab:
        cluster = Cluster(lab, Path(own))
        yield cluster
    for process in cluster.processes:
        with process:  # it ended with the network
            pass


@pytest.fixture(scope="module")
def started(cache: Path) -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.fill()
    return started


def some_seconds(job: MakeJob) -> JobSpec:
    return job(
        data__limit=None, train__epochs=12, storage__every_steps=7, train__batch_size=64,
        workers__count=2, workers__cpus=1,
    )  # fmt: skip


def lose_a_node(run: Run, cluster: Cluster, lose: Callable[[Machine], None]) -> None:
    """Train on two nodes of the three, and lose one of these in mid-epoch."""
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    first, second = cluster.at_work()
    lose(second)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert happened(run, WorkersRestarted), run.events()


def assert_unbroken(run: Run, tmp_path: Path, limit_s: float = 300) -> None:
    """Its end is that of two processes here that nothing happened to."""
    other = Run.create(run.job().change({"workers.address": None}))
    two = workers(2, other.folder, cwd=tmp_path, verb="resume")
    assert ended(two, limit_s)[0] == {0}
    assert same(weights(other), weights(run)) and same(weights(other, "best"), weights(run, "best"))
    assert numbers(other) == numbers(run)
    own, others = run.per_class(), other.per_class()
    assert own and others and own["confusion"] == others["confusion"]


def test_a_job_outlives_a_node_though_nothing_is_shared(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Workers see neither the run's folder nor each other's disk: all of it comes through Ray."""
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    lose_a_node(run, cluster, Machine.kill)

    for node in cluster.nodes:
        if node.is_up:
            left = node.run(f"ls '{run.folder.parent.parent}' $RAYCNN_CACHE/copies").split()
            assert not [name for name in left if not name.endswith(":")]
    logs = run.folder / "logs"
    assert "resuming from" in (logs / "rank-0.log").read_text()
    assert (logs / "rank-1.log").exists() and list((logs / "tensorboard").iterdir())
    assert_unbroken(run, tmp_path)


def kill_raylet(node: Machine) -> None:
    """Ray's own process alone: its others find that out by themselves."""
    (raylet,) = node.runs(RAYLET)
    os.kill(raylet, signal.SIGKILL)


def test_a_job_outlives_a_raylet_with_a_shared_folder(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    run = Run.create(some_seconds(job))
    lose_a_node(run, cluster, kill_raylet)
    assert_unbroken(run, tmp_path)


def test_a_job_leaves_a_node_before_it_is_taken_away(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Ray's notice of a preemption, as its autoscaler gives it: no step is lost, and no retry."""
    spec = some_seconds(job).change({"failure.retries": 0, "train.epochs": 60})
    run = Run.create(spec)  # to give the notice takes some seconds, too
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    going = cluster.at_work()[1]
    cluster.drain(going)
    wait_for(lambda: len(pids(run, 1)) == 2, driver)
    assert going not in cluster.at_work()
    going.kill()
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    saved, resumed = happened(run, StoppedOnRequest), happened(run, Resumed)
    assert [(e.epoch, e.step) for e in saved] == [(e.epoch, e.step) for e in resumed]
    assert happened(run, RestartPlanned)
    assert not happened(run, WorkersRestarted)
    assert_unbroken(run, tmp_path)


def trained(search: Search) -> int:
    """How many of its trials have done an epoch."""
    there = (search.folder / "search.yaml").is_file()
    return sum(bool(one.rows()) for one in search.trials()) if there else 0


def test_a_search_outlives_a_node(cluster: Cluster, tmp_path: Path) -> None:
    """What was trained there goes on elsewhere, from its checkpoint; no other trial is touched.

    The nodes do not see the folder of the search: all of it comes through Ray.
    """
    (tmp_path / "runs").mkdir()
    cluster.hide(tmp_path / "runs")
    spec = tmp_path / "lost.tune.yaml"
    spec.write_text(SEARCH)
    driver = cluster.start("tune", spec, f"storage.path={tmp_path / 'runs'}")
    search = Search(tmp_path / "runs" / "lost" / "1")

    wait_for(lambda: trained(search) == NODES, driver)
    cluster.nodes[0].kill()
    _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    again = [one for one in search.trials() if len(pids(one.run, 0)) == 2]
    assert {one.info["state"] for one in search.trials()} == {"done"}
    assert len(search.trials()) == 4 and len(again) == 1
    assert "resuming from" in (again[0].run.folder / "logs" / "rank-0.log").read_text()


def test_a_search_without_nodes_says_what_it_waits_for_and_ends_resumable(
    cluster: Cluster, tmp_path: Path
) -> None:
    spec = tmp_path / "none.tune.yaml"
    spec.write_text(SEARCH.replace("name: lost", "name: none") + "workers: {timeout_s: 20}\n")
    driver = cluster.start("tune", spec, f"storage.path={tmp_path / 'runs'}")
    search = Search(tmp_path / "runs" / "none" / "1")
    wait_for(lambda: trained(search) == NODES, driver)
    for node in cluster.nodes:
        node.kill()
    out, said = driver.communicate(timeout=300)
    assert driver.returncode == 5, said
    assert "no node had room for a trial" in said
    assert f"raycnn tune --resume {search.folder}" in said and "Traceback" not in said
    assert not [one.id for one in search.trials() if one.info.get("state") == "failed"]


def test_a_killed_driver_finds_in_its_folder_what_the_nodes_did(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Also a wish to stop reaches the nodes, and what they save on it the folder."""
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    _kill(driver)

    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 5, driver)
    run.request_stop()
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130 and f"raycnn resume {run.folder}" in said

    driver = cluster.driver(run)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert_unbroken(run, tmp_path)


def test_a_full_disk_of_the_driver_ends_the_job_and_keeps_the_last_checkpoint(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    storage = run.checkpoints
    cluster.head.run(f"mount -t tmpfs -o size=2m none '{storage}'")
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    cluster.head.run(f"cat /dev/zero > '{storage}/others' 2> /dev/null || true")
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 3, said
    assert "cannot save a checkpoint" in said and "No space left" in said
    assert f"raycnn resume {run.folder}" in said and "Traceback" not in said
    assert cluster.head.run(f"ls '{storage}'/0*/state.json '{storage}/index.json'")


def _kill(driver: "subprocess.Popen[str]") -> None:
    """What runs inside; what was started only waits for it."""
    inside = network.child_of(driver.pid)
    assert inside
    os.kill(inside, signal.SIGKILL)
    driver.communicate()
