"""Work in a background thread: a function while a block runs, or ahead of an iterator."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # with one, CPUs that share its work wait for the last of them


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


def prefetch(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the result for each item, of which AHEAD are worked on while one is used."""
    remaining = iter(items)
    with ThreadPoolExecutor(AHEAD, "reader") as threads:
        pending = deque(threads.submit(function, item) for item in islice(remaining, AHEAD))
        while pending:
            result = pending.popleft().result()
            pending.extend(threads.submit(function, item) for item in islice(remaining, 1))
            yield result
