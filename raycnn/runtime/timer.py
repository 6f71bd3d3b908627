"""Time passes and the waits for their images on a device, waiting for it once, at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class PassTimer:
    """A timer of passes: by events of the device, or on a CPU by the clock.

    A device's events are in its own time: what happens while it is busy takes none.
    """

    def __init__(self, device: torch.device):
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._passes: list[tuple[Any, Any, int]] = []
        self._waits: list[tuple[Any, Any]] = []

    @contextmanager
    def timing(self, images: int) -> Iterator[None]:
        """Time the block: one pass over `images` images."""
        start = self._now()
        yield
        if images:
            self._passes.append((start, self._now(), images))

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, and time the wait for each and its preparation on the device."""
        end = object()
        while True:
            start = self._now()
            batch = next(batches, end)
            if batch is end:
                return
            self._waits.append((start, self._now()))
            yield batch  # type: ignore[misc]

    def ms_per_image(self) -> float | None:
        """Return the median over the passes of their time per image; None without a pass."""
        self._synchronize()
        times = [self._ms(start, end) / images for start, end, images in self._passes]
        return median(times) if times else None

    def data_ms_per_image(self) -> float | None:
        """Return the mean time of waiting per image of the passes; None without a pass."""
        self._synchronize()
        images = sum(images for _, _, images in self._passes)
        return sum(self._ms(*wait) for wait in self._waits) / images if images else None

    def _synchronize(self) -> None:
        if self._module:
            self._module.synchronize()

    def _now(self) -> Any:
        if not self._module:
            return time.perf_counter()
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def _ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self._module else 1000 * float(end - start)
