"""Choose the launcher of a job: this process, torchrun, or Ray."""

import os
import sys
from typing import Literal

from raycnn.config.schema import Workers
from raycnn.runtime import distributed


def launcher_of(workers: Workers) -> Literal["ray", "local"]:
    """Return the launcher; `auto` is local under torchrun, and for one worker without address."""
    if workers.launcher != "auto":
        return workers.launcher
    alone = workers.max_count == 1 and not address_of(workers)
    return "local" if distributed.is_launched() or alone else "ray"


def is_remote(workers: Workers) -> bool:
    """Return whether the devices may be on another machine, as with a program's own Ray."""
    ray = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    return launcher_of(workers) == "ray" and (connected or bool(address_of(workers)))


def address_of(workers: Workers) -> str | None:
    """Return the address of the Ray cluster to run on, if one is given."""
    return workers.address or os.environ.get("RAY_ADDRESS")
