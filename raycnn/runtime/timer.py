"""Time forward passes on a device, waiting for the device once, at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch


class PassTimer:
    """A timer of forward passes: by events of the device, or on a CPU by the clock."""

    def __init__(self, device: torch.device):
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._passes: list[tuple[Any, Any, int]] = []

    @contextmanager
    def timing(self, images: int) -> Iterator[None]:
        """Time the block: one pass over `images` images."""
        start = self._now()
        yield
        self._passes.append((start, self._now(), images))

    def ms_per_image(self) -> float | None:
        """Return the median over the passes of their time per image; None without a pass."""
        if self._module:
            self._module.synchronize()
        times = [self._ms(start, end) / images for start, end, images in self._passes]
        return median(times) if times else None

    def _now(self) -> Any:
        if not self._module:
            return time.perf_counter()
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def _ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self._module else 1000 * float(end - start)
