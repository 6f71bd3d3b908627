"""Something that is looked after beside the work, until the work is over."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def poll_in_background(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Look now and then, in another thread, and once more when the work is over.

    A look that cannot read or write is made up for by the next.
    """
    over = threading.Event()

    def keep_looking() -> None:
        ending = False
        while not ending:
            ending = over.wait(every_s)
            with suppress(OSError):
                look()

    looking = threading.Thread(target=keep_looking, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
