"""Run a callback periodically in a background thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def poll_in_background(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `look` every `every_s` seconds in a background thread, and once more at the end.

    An OSError of a call is ignored: the next call tries again.
    """
    ended = threading.Event()

    def keep_looking() -> None:
        ending = False
        while not ending:
            ending = ended.wait(every_s)
            with suppress(OSError):
                look()

    looking = threading.Thread(target=keep_looking, daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
