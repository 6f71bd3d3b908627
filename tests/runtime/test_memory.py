"""Memory available to this process, and what it keeps."""

import platform
import resource
import subprocess
import sys

import pytest

from raycnn.errors import DataError
from raycnn.runtime import memory


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, 2**20))
    assert memory.available() == 0
    with pytest.raises(DataError, match="1\\.0 GB"):
        memory.require_memory(10**9, "it")


STEPS = """
import resource, sys
import torch
from raycnn.runtime import device

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    torch.ones(1 << 24)  # 64 MB, in 16,384 pages

if sys.argv[1] == "selected":
    device.find("cpu").select(0)
for _ in range(10):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_step_on_a_cpu_reuses_the_memory_of_the_one_before() -> None:
    def faults(which: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", STEPS, which], text=True))

    assert faults("selected") < 1_000
    assert faults("default") > 100_000
