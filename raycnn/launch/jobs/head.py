"""A Ray of raycnn's own on this machine, with a job server, for as long as it is needed."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from raycnn.errors import ClusterError
from raycnn.launch.jobs.client import LOOK_S, Cluster
from raycnn.launch.ray.node import RAY, RAY_GAVE_UP, last_line
from raycnn.runtime.device import DEVICE_KINDS

START_S = 120
END_S = 120


@contextmanager
def started() -> Iterator[Cluster]:
    """Raises ClusterError when it does not come up within START_S."""
    token = secrets.token_hex(32)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Short, for sockets lie in it; and Ray's last processes may still write there at the end.
    with TemporaryDirectory(prefix="raycnn-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        deadline = time.monotonic() + START_S
        head = _launch(folder, log, token, port)
        try:
            while isinstance(found := _reached(f"http://127.0.0.1:{port}", token), ClusterError):
                if time.monotonic() > deadline:
                    raise ClusterError(f"Ray did not start here within {START_S} s: {found}")
                if head.poll() is not None:
                    if RAY_GAVE_UP not in (said := last_line(log)):
                        raise ClusterError(f"Ray did not start here: {said}")
                    head = _launch(folder, log, token, port)
                time.sleep(LOOK_S)
            yield found
        finally:
            head.terminate()
            head.wait(END_S)


def _launch(folder: str, log: Path, token: str, port: int) -> "subprocess.Popen[bytes]":
    with log.open("w") as said:
        return subprocess.Popen(
            [
                sys.executable, "-c", RAY, "start", "--head", "--block",
                "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
                "--dashboard-agent-listen-port=0", f"--temp-dir={folder}",
                f"--num-cpus={DEVICE_KINDS['cpu'].count()}",
            ],
            env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the job
        )  # fmt: skip


def _reached(server: str, token: str) -> Cluster | ClusterError:
    try:
        cluster = Cluster(server, token)
        cluster.nodes()
    except ClusterError as error:
        return error
    return cluster
