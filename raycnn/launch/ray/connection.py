"""The Ray cluster of a job: reached or started, and what it has."""

import importlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError, SpecError, first_line
from raycnn.launch.launcher import address_of
from raycnn.launch.ray.node import PROBE_S, RAY_GAVE_UP
from raycnn.runtime.device import DEVICE_KINDS, DeviceKind

# Read by Ray when it is imported, or by the processes it starts.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` has each worker build its own environment
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a lost worker, or the end, is seen 2 s late
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more, and 3 s
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
for key, value in SETTINGS.items():
    os.environ.setdefault(key, value)

TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
if "RAY_AUTH_TOKEN" in os.environ or TOKEN.is_file():
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray sends a token it has to nobody

import grpc  # noqa: E402
import ray  # noqa: E402
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc  # noqa: E402

OBJECT_STORE_BYTES = 200 << 20  # images do not go through it


@dataclass(frozen=True)
class Node:
    address: str
    total: dict[str, float]

    def fits(self, ask: dict[str, float]) -> int:
        """How many workers that ask for so much find room here."""
        return min(int(self.total.get(key, 0) // amount) for key, amount in ask.items())


def require(workers: Workers) -> None:
    """Raises ClusterError when the workers do not fit, or no cluster answers."""
    nodes = look(workers)
    resources_per_worker(workers, kind_of(workers, nodes), nodes)


def look(workers: Workers) -> list[Node]:
    """What there is to run on. Raises ClusterError when no cluster answers."""
    if address_of(workers):
        with connected(workers) as nodes:
            return nodes
    return [Node("this machine", {k.resource: float(k.count()) for k in DEVICE_KINDS.values()})]


@contextmanager
def connected(workers: Workers) -> Iterator[list[Node]]:
    """A Ray to run on: the one at the address, else one of our own for as long as needed."""
    address = address_of(workers)
    if address:
        _probe(address)
    else:
        require(workers)
    # Imported while Ray's processes start: either takes about as long as the other.
    importing = threading.Thread(target=importlib.import_module, args=("ray.train.torch",))
    importing.start()
    try:
        _init(address)
        importing.join()
        yield alive_nodes()
    finally:
        ray.shutdown()


def alive_nodes() -> list[Node]:
    """The nodes of the Ray that this process is connected to."""
    return [Node(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def _init(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        try:
            ray.init(
                "local",
                num_cpus=DEVICE_KINDS["cpu"].count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        except Exception as error:  # as it is: Ray raises no class of its own
            if RAY_GAVE_UP not in str(error):
                raise
            raise ClusterError("Ray did not start within its 30 s: this machine is busy") from None
        hide_token()
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster at {address}: {first_line(error)}") from None


def hide_token() -> None:
    """From other users: Ray writes it for all to read."""
    with suppress(OSError):  # none, or another's
        TOKEN.chmod(0o600)


def _probe(address: str) -> None:
    """Ray itself would try for minutes. Raises ClusterError when no head of our version answers."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536
    if not host or not is_port or "://" in address:
        raise SpecError(
            f"{address!r} is no address of a Ray head: host:port, as `ray start` prints it",
            "workers.address",
        )
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    try:
        with grpc.insecure_channel(address) as channel:
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            question = gcs_service_pb2.CheckAliveRequest()
            version = head.CheckAlive(question, timeout=PROBE_S, metadata=_token()).ray_version
    except grpc.RpcError as error:
        raise ClusterError(f"no Ray cluster at {address}: {error.details()}") from None
    if version != ray.__version__:
        raise ClusterError(f"the Ray at {address} is {version}, here it is {ray.__version__}")


def _token() -> list[tuple[str, str]]:
    token = os.environ.get("RAY_AUTH_TOKEN") or (TOKEN.read_text() if TOKEN.is_file() else "")
    return [("authorization", f"Bearer {token.strip()}")] if token else []


def kind_of(workers: Workers, nodes: list[Node]) -> DeviceKind:
    """The kind of device a job's workers drive on this cluster."""
    if workers.device != "auto":
        return DEVICE_KINDS[workers.device]
    there = (kind for kind in DEVICE_KINDS.values() if capacity(nodes, {kind.resource: 1}))
    return next(there, DEVICE_KINDS["cpu"])


def resources_per_worker(workers: Workers, kind: DeviceKind, nodes: list[Node]) -> dict[str, float]:
    """What each worker asks Ray for: with no `cpus` given, the most that lets all of them in.

    Where not all of a range fit, as many as do are all. Raises ClusterError, with a table of what
    exists, when too few fit.
    """
    device = {kind.resource: 1.0} if kind.resource != "CPU" else {}
    least = {"CPU": float(workers.cpus or 1)} | device
    count = min(workers.most, capacity(nodes, least))
    if count < workers.least:
        raise ClusterError(
            f"{workers.asked} workers of {in_words(least)} each do not fit into what there is:\n"
            + table(nodes)
        )
    most = int(max(node.total.get("CPU", 0) for node in nodes))
    asks = ({"CPU": float(cpus)} | device for cpus in range(workers.cpus or most, 0, -1))
    return next(ask for ask in asks if capacity(nodes, ask) >= count)


def capacity(nodes: list[Node], ask: dict[str, float]) -> int:
    """How many workers that ask for so much find room."""
    return sum(node.fits(ask) for node in nodes)


def table(nodes: list[Node]) -> str:
    resources = [kind.resource for kind in reversed(DEVICE_KINDS.values())]
    lines = ["node".ljust(20) + "".join(name.rjust(8) for name in resources)]
    for node in nodes:
        amounts = (f"{node.total.get(name, 0):g}".rjust(8) for name in resources)
        lines.append(node.address.ljust(20) + "".join(amounts))
    return "\n".join(lines)


def in_words(ask: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in ask.items())
