"""Processes that decode: what they return, raise, and survive."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raycnn.data.images import decoders
from raycnn.data.images.decoders import Decoders
from raycnn.errors import DataError, EnvironmentUnavailable
from tests.support import decoding


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Decoders:
    monkeypatch.setattr(decoders, "START_S", 0)
    monkeypatch.setattr(decoders, "IDLE_S", 0.1)  # for this process alone
    return Decoders(2)


def test_results_come_in_order_from_other_processes(two: Decoders) -> None:
    results = two.map(decoding.pid_and, [(number,) for number in range(50)])
    assert [number for _, number in results] == [*range(50)]
    assert 1 <= len({pid for pid, _ in results} - {os.getpid()}) <= 2


def test_a_little_work_is_done_without_a_process() -> None:
    assert {pid for pid, _ in Decoders(2).map(decoding.pid_and, [(1,), (2,)])} == {os.getpid()}


def test_an_error_of_the_user_is_raised_here(two: Decoders) -> None:
    with pytest.raises(DataError, match="about 7"):
        two.map(decoding.complain, [("about 7",)])


def test_a_process_that_was_killed_is_replaced(two: Decoders) -> None:
    ((pid, _),) = two.map(decoding.pid_and, [(1,)])
    os.kill(pid, signal.SIGKILL)
    ((other, _),) = two.map(decoding.pid_and, [(1,)])
    assert other not in (pid, os.getpid())


def test_a_call_that_ends_its_process_is_named_by_the_exit_code(two: Decoders) -> None:
    with pytest.raises(EnvironmentUnavailable, match="exit code 7"):
        two.map(os._exit, [(7,)])


def test_an_idle_process_ends_and_leaves_no_zombie(two: Decoders) -> None:
    ((pid, _),) = two.map(decoding.end_when_idle, [(0.1,)])
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():  # neither a process nor a zombie
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert two.map(decoding.pid_and, [(1,)])[0][1] == 1


def test_processes_end_with_the_one_that_is_killed() -> None:
    code = (
        "import time; from raycnn.data.images import decoders; from tests.support import decoding;"
        "decoders.START_S = 0; two = decoders.Decoders(2);"
        "print(two.map(decoding.pid_and, [(1,)])[0][0], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout
        decoder = Path("/proc", main.stdout.readline().strip())
        main.kill()
    deadline = time.monotonic() + 60
    while decoder.exists() and (decoder / "cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
