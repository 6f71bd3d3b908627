"""What a machine of a cluster does when it is asked to.

The text of this file is sent to the Python of each machine, which has Ray but perhaps another
raycnn: it imports nothing of ours. Whoever calls a function here gets what it returns as JSON,
or what it exits with as a message.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MARK = "RAYCNN_NODE"  # in the environment of all that Ray starts for a node, its folder
ADDRESS = "ray_current_cluster"  # in that folder, written by Ray when it is up
# Ray's own command, but without the server of Ray Client: nobody here needs it, yet it would be
# open to all on a port of its own, and Ray ends the head when it does not start.
RAY = """
import ray.scripts.scripts as command
command.get_ray_client_dependency_error = lambda: "not wanted"
command.main()
"""
RAY_GAVE_UP = "timed out during startup"  # after 30 s, too soon for a busy machine
PROBE_S = 5
GRACE_S = 20


def versions() -> dict[str, str | None]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "Ray": _version("ray"), "raycnn": _version("raycnn")}


def look(name: str) -> dict[str, Any]:
    """The versions here, whether the node runs, and the address of the head it belongs to."""
    address = folder(name) / ADDRESS
    return {
        "versions": versions(),
        "runs": bool(processes(name)),
        "address": address.read_text() if address.exists() else "",
    }


def start(name: str, token: str, options: list[str], limit_s: float) -> str:
    """Start Ray in a session of its own; the address of the head it belongs to."""
    home = folder(name)
    home.mkdir(mode=0o700, exist_ok=True)
    secret, address, log = home / "token", home / ADDRESS, home / "log"
    for old in (secret, address):
        if old.exists():
            old.unlink()
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    deadline = time.monotonic() + limit_s
    ray = _launch(home, log, options)
    while not address.exists():
        ended, late = ray.poll() is not None, time.monotonic() > deadline
        if ended or late:
            end(name)
        if late:
            sys.exit(f"Ray has not started within {limit_s:g} s; what it said is in {log}")
        if ended and RAY_GAVE_UP not in last_line(log):
            sys.exit(f"Ray did not start: {last_line(log)} (all it said is in {log})")
        if ended:
            ray = _launch(home, log, options)
        time.sleep(0.1)
    return address.read_text()


def nodes(name: str, count: int, limit_s: float) -> list[dict[str, Any]]:
    """Of the cluster whose head this is, once so many are alive, or after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        found = _nodes(folder(name))
        if sum(node["alive"] for node in found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def stop(name: str) -> int:
    """End the node's processes and no other; how many there were."""
    count = end(name)
    secret = folder(name) / "token"
    if secret.exists():
        secret.unlink()
    return count


def end(name: str) -> int:
    found = ending = processes(name)
    leaders = [pid for pid, session in found.items() if pid == session]
    _signal(leaders or found, signal.SIGTERM)  # Ray's first process ends the others in order
    deadline = time.monotonic() + GRACE_S
    while ending and time.monotonic() < deadline:
        time.sleep(0.1)
        ending = {**dict(ending.items() & _living().items()), **processes(name)}
    _signal(ending, signal.SIGKILL)
    return len(found)


def folder(name: str) -> Path:
    """Of a node. Ray lets everybody write into its own, so it stands in one that is ours alone."""
    private = Path(tempfile.gettempdir()) / f"raycnn-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid() or private.stat().st_mode & 0o077:
        sys.exit(f"{private} is not yours alone (mode 0700)")
    return private / name


def processes(name: str) -> dict[int, int]:
    """Process: session, of all that belong to sessions begun with this node's mark.

    Ray's workers write their titles over their environment, but stay in the session.
    """
    mark = f"{MARK}={folder(name)}".encode()
    living = _living()
    sessions = {living[pid] for pid in living if mark in _environ(pid).split(b"\0")}
    return {pid: session for pid, session in living.items() if session in sessions}


def _launch(home: Path, log: Path, options: list[str]) -> subprocess.Popen[bytes]:
    words = ["--block", "--temp-dir", str(home), "--node-name", home.name, *options]
    with log.open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", RAY, "start", *words],
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            env=_environment(home), cwd=str(Path.home()), start_new_session=True,
        )  # fmt: skip


def _living() -> dict[int, int]:
    """Process: session, of all that are not zombies."""
    sessions = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            sessions[int(stat.parent.name)] = int(session)
    return sessions


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # another user's, or ended
        return b""


def _environment(home: Path) -> dict[str, str]:
    ours = {
        MARK: str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    others = {"RAY_ADDRESS", "RAY_AUTH_TOKEN"}
    kept = {key: value for key, value in os.environ.items() if key not in others}
    return {**kept, **ours}


def _nodes(home: Path) -> list[dict[str, Any]]:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        token = [("authorization", f"Bearer {(home / 'token').read_text()}")]
        with grpc.insecure_channel((home / ADDRESS).read_text()) as channel:
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            question = gcs_service_pb2.GetAllNodeInfoRequest()
            answer = head.GetAllNodeInfo(question, timeout=PROBE_S, metadata=token)
    except (OSError, grpc.RpcError):  # it does not answer, or not yet
        return []
    return [
        {
            "name": node.node_name,
            "address": node.node_manager_address,
            "alive": node.state == 0,
            "total": dict(node.resources_total),
            "reason": node.death_info.reason_message,
        }
        for node in answer.node_info_list
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
