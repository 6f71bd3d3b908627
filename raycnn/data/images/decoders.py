"""Processes that call functions, to decode pictures on all CPUs.

In threads the parts of Pillow that are Python run one at a time. A process is an interpreter
without torch; it starts when it is needed, and ends when it has been idle for IDLE_S seconds, or
with the process that started it.
"""

import atexit
import fcntl
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import LifoQueue
from typing import IO, Any, NamedTuple, TypeVar

from raycnn.errors import EnvironmentUnavailable, RaycnnError

T = TypeVar("T")

START_S = 0.5  # seconds of work that are done without processes: they take as long to start
IDLE_S = 60
PIPE_BYTES = 2**20  # the most that Linux gives a user by default
# A Ctrl-C in the terminal is for the process that started this one.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from raycnn.data.images.decoders import serve
serve()
"""


class Call(NamedTuple):
    """A function of a module, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Decoders:
    """Up to `count` processes; a count of 1 stands for this process."""

    def __init__(self, count: int):
        self.count, self.worked_s = count, 0.0
        self.threads = ThreadPoolExecutor(count, "decoder")
        self.idle: LifoQueue[Decoder] = LifoQueue()  # the last used first: others may end
        self.decoders = [Decoder() for _ in range(count)]
        for decoder in self.decoders:
            self.idle.put(decoder)
        if count > 1:
            threading.Thread(target=self._reap, daemon=True).start()

    def map(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """Return the result for each tuple of arguments. Raises the first error among them.

        Raises EnvironmentUnavailable if a process ends, and again when the call is repeated.
        """
        results: list[T] = []
        while len(results) < len(arguments) and (self.count == 1 or self.worked_s < START_S):
            start = time.perf_counter()
            results.append(function(*arguments[len(results)]))
            self.worked_s += time.perf_counter() - start
        rest = (Call(function, each) for each in arguments[len(results) :])
        return results + list(self.threads.map(self._call, rest))

    def _reap(self) -> None:
        """Wait for processes that have ended: one that was idle for too long would be a zombie."""
        while True:
            time.sleep(IDLE_S)
            for decoder in self.decoders:
                if process := decoder.process:
                    process.poll()

    def _call(self, call: Call) -> Any:
        decoder = self.idle.get()
        try:
            return decoder.call(call)
        finally:
            self.idle.put(decoder)


class Decoder:
    """One process, started when it is called and there is none."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def call(self, call: Call) -> Any:
        for _ in range(2):  # the process may have been idle for too long
            try:
                result = self._send(call)
            except (EOFError, OSError, pickle.UnpicklingError):
                code = self.close()
                continue
            if isinstance(result, RaycnnError):
                raise result
            return result
        raise EnvironmentUnavailable(f"a process that decodes images ended (exit code {code})")

    def close(self) -> int | None:
        """End the process, and return its exit code."""
        process, self.process = self.process, None
        if not process:
            return None
        process.communicate()
        return process.returncode

    def _send(self, call: Call) -> Any:
        if not self.process:
            command = [sys.executable, "-c", PROGRAM.format(path=sys.path)]
            pipe = subprocess.PIPE
            # numpy would start as many threads as there are CPUs, in each process.
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
            assert self.process.stdout
            _enlarge(self.process.stdout)
        assert self.process.stdin and self.process.stdout
        pickle.dump(call, self.process.stdin, pickle.HIGHEST_PROTOCOL)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)


def _enlarge(pipe: IO[bytes]) -> None:
    """Let a pipe hold a whole result where the system can, so that the process need not wait."""
    with suppress(AttributeError, OSError):  # not Linux, or more than a user's pipes may hold
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def serve() -> None:
    """Answer calls, read from stdin, on stdout."""
    calls, results = sys.stdin.buffer, sys.stdout.buffer
    while select.select([calls], [], [], IDLE_S)[0]:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:  # the process that calls has ended
            return
        try:
            result = function(*arguments)
        except RaycnnError as error:
            result = error
        pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
        results.flush()
