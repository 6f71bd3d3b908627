"""Which way the workers of a job are started: in this process, by torchrun, or on Ray."""

import os
from typing import Literal

from raycnn.config.schema import Workers
from raycnn.runtime import distributed


def launcher_of(workers: Workers) -> Literal["ray", "local"]:
    """`auto`: what torchrun started, and one worker without an address, runs right here."""
    if workers.launcher != "auto":
        return workers.launcher
    alone = workers.most == 1 and not address_of(workers)
    return "local" if distributed.launched() or alone else "ray"


def elsewhere(workers: Workers) -> bool:
    """Whether the devices may be another machine's."""
    return launcher_of(workers) == "ray" and bool(address_of(workers))


def address_of(workers: Workers) -> str | None:
    """Of the Ray cluster to run on, where there is one."""
    return workers.address or os.environ.get("RAY_ADDRESS")
