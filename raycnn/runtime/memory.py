"""Host memory of this process: what is available to it, and what it keeps once freed.

Available is what the machine has, limited by its container and by `ulimit`.
"""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

from raycnn.errors import DataError

MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 2**62  # bytes: stands for a limit that the system does not report
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h


def available() -> int:
    """Return the number of bytes that can be allocated without swapping, or UNKNOWN."""
    return min(_machine(), _container(), _address_space())


def require_memory(size: int, purpose: str) -> None:
    """Raise DataError if the `size` bytes that `purpose` needs are not available."""
    if size > (free := available()):
        raise DataError(
            f"{purpose} takes {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} are free"
        )


def keep_freed() -> None:
    """Have glibc keep freed memory for later allocations, as torch does on accelerators.

    By default it returns large tensors to the system, which clears each of their pages again in the
    next step: a fifth of the time of some networks. See mallopt(3). Does nothing with another C
    library.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _machine() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):  # the system is not Linux
        return UNKNOWN


def _address_space() -> int:
    """Return the bytes left below the limit of the address space (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):  # the system is not Linux
        return UNKNOWN
    return UNKNOWN if limit == resource.RLIM_INFINITY else max(0, limit - used)


def _container() -> int:
    """Return the bytes left below the cgroup v2 limit; the page cache counts as free."""
    try:
        limit = int((CGROUP / "memory.max").read_text())  # without a limit "max": a ValueError
        used = int((CGROUP / "memory.current").read_text())
        pairs = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(dict(pairs)["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return UNKNOWN
