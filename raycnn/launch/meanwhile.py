"""Something that is looked after beside the work, until the work is over."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meanwhile(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Look now and then, in another thread, and once more when the work is over."""
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(every_s):
            look()
        look()

    looking = threading.Thread(target=keep_looking, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
