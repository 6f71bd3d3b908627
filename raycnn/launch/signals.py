"""Handle Ctrl-C and SIGTERM: the first requests to save and stop, the second stops at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from raycnn.runtime import distributed

ECHO_S = 1  # torchrun forwards the Ctrl-C that the terminal has already sent to its workers


class Stop:
    """A request to save and stop; while `busy` is false the first signal stops at once."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self.requested = False
        self.busy = busy
        self._since = 0.0

    def __call__(self) -> bool:
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals only in its main thread
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and distributed.is_launched() and now - self._since < ECHO_S:
            return
        if self.requested or not self.busy():
            raise KeyboardInterrupt
        self.requested, self._since = True, now
