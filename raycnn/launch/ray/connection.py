"""Connect to the Ray cluster of a job, or start one, and find its resources."""

import importlib
import logging
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError, EnvironmentUnavailable, SpecError
from raycnn.launch.launcher import address_of
from raycnn.launch.ray.resources import Node, kind_of, resources_per_worker
from raycnn.launch.ray.token import PROBE_S, TOKEN, hide_token
from raycnn.runtime.device import DEVICE_KINDS

# Ray reads these when it is imported, or in the processes that it starts.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else, under `uv run`, each worker builds its own
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a loss, or the end, is detected 2 s late
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
for key, value in SETTINGS.items():
    os.environ.setdefault(key, value)

if TOKEN.is_file() or "RAY_AUTH_TOKEN" in os.environ:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray does not send its token

import ray  # noqa: E402

MAX_START_ATTEMPTS = 3  # Ray times out after half a minute, which a busy machine may exceed
OBJECT_STORE_BYTES = 200 << 20  # small: images do not pass through it
# Every HTTP/2 connection starts with this preface and an empty SETTINGS frame (RFC 9113, 3.4). A
# gRPC server, such as a Ray head, answers with SETTINGS before any authentication.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER, SETTINGS_FRAME = 9, 4  # bytes; a frame's type is its fourth


def require_resources(workers: Workers) -> None:
    """Raise ClusterError when the workers do not fit, or no cluster answers."""
    nodes = find_nodes(workers)
    resources_per_worker(workers, kind_of(workers, nodes), nodes)


def find_nodes(workers: Workers) -> list[Node]:
    """Return the available nodes. Raises ClusterError when no cluster answers."""
    if address_of(workers) or ray.is_initialized():
        with connected(workers) as nodes:
            return nodes
    here = Counter[str]()
    for kind in DEVICE_KINDS.values():
        if kind.automatic:
            here[kind.resource] += kind.count()
    return [Node("this machine", {name: float(number) for name, number in here.items()})]


@contextmanager
def connected(workers: Workers, module: str | None = None) -> Iterator[list[Node]]:
    """Connect to Ray for the duration of the block, and yield its nodes.

    Uses the Ray that this process is already connected to, and leaves it running; else connects to
    the workers' address, or starts a local Ray, and disconnects at the end. `module`, which the
    block is going to import, is imported while Ray starts: both take about equally long. Raises
    ClusterError when no cluster answers.
    """
    if ray.is_initialized():
        yield alive_nodes()
        return
    address = address_of(workers)
    # The watcher costs a process and 3 s, and only nodes of a cluster are preempted.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(bool(address))))
    if address:
        _probe(address, from_spec=bool(workers.address))
    else:
        require_resources(workers)
    importing = threading.Thread(target=lambda: module and importlib.import_module(module))
    importing.start()
    try:
        _init(address)
        importing.join()
        yield alive_nodes()
    finally:
        ray.shutdown()


def alive_nodes() -> list[Node]:
    """Return the alive nodes of the Ray that this process is connected to."""
    return [Node(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def _init(address: str | None) -> None:
    """Initialize Ray. Raises ClusterError with Ray's message."""
    local_options: dict[str, Any] = {
        "num_cpus": DEVICE_KINDS["cpu"].count(),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    for attempt in range(1 if address else MAX_START_ATTEMPTS):
        try:
            ray.init(
                address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else local_options),
            )
            break
        except Exception as error:  # Ray raises no specific class
            ray.shutdown()
            if address or attempt == MAX_START_ATTEMPTS - 1:
                where = f"no Ray cluster at {address}" if address else "Ray did not start here"
                raise ClusterError(f"{where}: {' '.join(str(error).split())}") from None
    if not address:
        hide_token()


def _probe(address: str, from_spec: bool) -> None:
    """Raise ClusterError when no Ray head answers: Ray itself would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536
    if not host or not is_port or "://" in address:
        wrong = f"{address!r} is not the address of a Ray head: host:port, as `ray start` prints it"
        if from_spec:
            raise SpecError(wrong, "workers.address")
        raise EnvironmentUnavailable(f"RAY_ADDRESS: {wrong}")
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as head:
            head.sendall(PREFACE)
            answer = head.recv(FRAME_HEADER)
    except OSError as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}") from None
    if len(answer) < FRAME_HEADER or answer[3] != SETTINGS_FRAME:
        raise ClusterError(f"no Ray cluster at {address}: the server there is not a Ray head")
