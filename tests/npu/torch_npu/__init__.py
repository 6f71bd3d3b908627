"""Stands in for torch_npu, over simulated.cpp, with two cards.

What is done with it is written into the file that SIMULATED_NPU_LOG names. SIMULATED_NPU_FREE is
the number of bytes that its cards have free.
"""

import os
import time
from typing import Any

import simulated_npu
import torch
import torch.distributed as dist

CARDS = 2


def _note(what: str) -> None:
    if log := os.environ.get("SIMULATED_NPU_LOG"):
        with open(log, "a") as file:
            file.write(f"{what}\n")


class _Event:
    """A point in a queue of work that is always empty."""

    def __init__(self, enable_timing: bool = False):
        self.timed, self.at = enable_timing, 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        assert self.timed and end.timed
        return 1000 * (end.at - self.at)

    def query(self) -> bool:
        return True


class npu:
    """What raycnn uses of torch.npu, and torch of any device's module."""

    empty_cache = staticmethod(lambda: None)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    get_device_name = staticmethod(lambda device=None: "simulated NPU")
    is_bf16_supported = staticmethod(lambda: True)
    current_device = staticmethod(simulated_npu.current_device)
    Event = _Event
    _is_in_bad_fork = staticmethod(lambda: False)

    @staticmethod
    def device_count() -> int:
        """As the real one: numbers that do not rise are no devices at all."""
        named = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        seen = (
            list(range(CARDS))
            if named is None
            else [int(word) for word in named.split(",") if word]
        )
        rising = seen == sorted(set(seen))
        return sum(card < CARDS for card in seen) if rising else 0

    @staticmethod
    def is_available() -> bool:
        return npu.device_count() > 0

    @staticmethod
    def set_device(device: Any) -> None:
        simulated_npu.see(npu.device_count())
        simulated_npu.set_device(torch.device(device).index)
        _note(f"{device} of {os.environ.get('ASCEND_RT_VISIBLE_DEVICES')}")

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # it is the CPU that draws

    manual_seed_all = manual_seed

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return int(os.environ.get("SIMULATED_NPU_FREE", 2**30)), 2**30

    @staticmethod
    def reset_peak_memory_stats(device: Any = None) -> None:
        simulated_npu.reset_peak()

    @staticmethod
    def max_memory_allocated(device: Any = None) -> int:
        return int(simulated_npu.peak())


def _hccl(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return simulated_npu.hccl(dist.ProcessGroupGloo(store, rank, size, timeout))


def _autoload() -> None:
    """What torch calls where it loads installed backends by itself: importing this is all."""


_note("loaded")
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
simulated_npu.see(npu.device_count())
dist.Backend.register_backend("hccl", _hccl, devices=["npu"])
