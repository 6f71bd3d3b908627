"""A Ray cluster of nodes on one machine, each with a network, processes and disk of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import namespaces
from benchmarks.namespaces import Machine, Network
from raycnn.runs.directory import Run

WHY_NOT = namespaces.why_not()
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
PORT = 6379
LEAN = ["--include-log-monitor=false", "--disable-usage-stats", "--object-store-memory=100000000"]
NODES = 3
RAYLET = "raylet/raylet"


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
        """Replace the nodes that were lost, until there are `count`."""
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
        """Mount an empty folder of its own there on every node."""
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
        """Start Ray, which gives itself 30 s: on a busy machine not always enough."""
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
    with TemporaryDirectory() as own, namespaces.network() as lab:
        cluster = Cluster(lab, Path(own))
        yield cluster
    for process in cluster.processes:
        with process:  # it ended with the network
            pass
