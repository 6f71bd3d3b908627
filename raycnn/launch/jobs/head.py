"""Run a temporary Ray head with a job server on this machine."""

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
from raycnn.launch.jobs.client import POLL_INTERVAL_S, Cluster
from raycnn.runtime.device import DEVICE_KINDS

START_S = 120
END_S = 120
MAX_ATTEMPTS = 3


@contextmanager
def started() -> Iterator[Cluster]:
    """Start a Ray head, yield its cluster, and stop it at the end.

    Raises ClusterError when it does not start within START_S.
    """
    token = secrets.token_hex(32)
    port = _free_port()
    # A short path, since sockets lie in it. Ray's last processes may still write there at the end.
    with TemporaryDirectory(prefix="raycnn-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        deadline, attempts = time.monotonic() + START_S, 0
        head = _launch(folder, log, token, port)
        try:
            while isinstance(cluster := _reached(f"http://127.0.0.1:{port}", token), ClusterError):
                if time.monotonic() > deadline:
                    raise ClusterError(f"Ray did not start here within {START_S} s: {cluster}")
                if head.poll() is not None:  # also on a busy machine, where Ray times out
                    attempts += 1
                    if attempts == MAX_ATTEMPTS:
                        raise ClusterError(f"Ray did not start here: {_last_line(log)}")
                    head = _launch(folder, log, token, port)
                time.sleep(POLL_INTERVAL_S)
            yield cluster
        finally:
            head.terminate()
            head.wait(END_S)


def _launch(folder: str, log: Path, token: str, port: int) -> "subprocess.Popen[bytes]":
    with log.open("w") as output:
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "start", "--head", "--block",
                "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
                # With 0 the job server of Ray 2.51 finds no logs.
                f"--dashboard-agent-listen-port={_free_port()}", f"--temp-dir={folder}",
                # Ray Client's server would end the head if its default port were taken.
                f"--ray-client-server-port={_free_port()}",
                f"--num-cpus={DEVICE_KINDS['cpu'].count()}",
            ],
            env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the job
        )  # fmt: skip


def _reached(server: str, token: str) -> Cluster | ClusterError:
    try:
        cluster = Cluster(server, token)
        cluster.nodes()
    except ClusterError as error:
        return error
    return cluster


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
