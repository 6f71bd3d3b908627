"""Command lines in processes of their own, one or several that meet, and waiting for them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Call = Callable[..., tuple[int, str, str]]


def raycnn(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "raycnn", *map(str, words)],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def workers(
    count: int,
    spec: Path,
    *changes: str,
    cwd: Path,
    verb: str = "train",
    program: tuple[str, str] = ("-m", "raycnn"),
    missing: int = 0,
) -> list[subprocess.Popen[str]]:
    """Start `count` processes that meet as torchrun's do, and wait for some that are missing."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program, verb, str(spec), *changes],
            cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count + missing),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]  # fmt: skip


def wait_for(
    what: Callable[[], object], process: subprocess.Popen[str], limit_s: float = 200
) -> None:
    """While the process lives, and not for ever."""
    deadline = time.monotonic() + limit_s
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(processes: list[subprocess.Popen[str]], limit_s: float = 300) -> tuple[set[int], str]:
    """Wait for all of them: their exit codes, and all they said on stderr."""
    said = "".join(process.communicate(timeout=limit_s)[1] for process in processes)
    return {process.returncode for process in processes}, said


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
