"""Run a callback periodically in a background thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def poll_in_background(callback: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `callback` every `every_s` seconds in a background thread, and once more at the end.

    An OSError of a call is ignored: the next call tries again.
    """
    ended = threading.Event()

    def poll() -> None:
        ending = False
        while not ending:
            ending = ended.wait(every_s)
            with suppress(OSError):
                callback()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
