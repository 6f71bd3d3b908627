"""Run a function in a background thread while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress


@contextmanager
def run_in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in a background thread; at the end of the block set its event and wait for it."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def poll_in_background(
    callback: Callable[[], None], every_s: float
) -> AbstractContextManager[None]:
    """Call `callback` every `every_s` seconds in a background thread, and once more at the end.

    An OSError of a call is ignored: the next call tries again.
    """

    def poll(ended: threading.Event) -> None:
        ending = False
        while not ending:
            ending = ended.wait(every_s)
            with suppress(OSError):
                callback()

    return run_in_background(poll)
