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


RELEASE = """
import resource
import torch
from raycnn.runtime import device, memory

def resident_mb():
    return int(memory.STATM.read_text().split()[1]) * resource.getpagesize() // 10**6

device.find("cpu").select(0)
torch.ones(1 << 26)  # 268 MB
kept = resident_mb()
memory.release_freed()
too_soon = resident_mb()
memory.release_freed(interval_s=0)
print(too_soon - kept, kept - resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_is_kept_goes_back_to_the_system_now_and_then() -> None:
    said = subprocess.check_output([sys.executable, "-c", RELEASE], text=True)
    at_once, later = map(int, said.split())
    assert abs(at_once) < 50 and later > 200
