"""Choose the launcher of a job: this process, torchrun, or Ray."""

import os
import sys
from typing import Any, Literal

from raycnn.config.schema import Workers
from raycnn.errors import SpecError
from raycnn.runtime import distributed


def launcher_of(workers: Workers) -> Literal["ray", "local"]:
    """Return the launcher; `auto` is local under torchrun, and for one worker without address."""
    if workers.launcher != "auto":
        return workers.launcher
    alone = workers.max_count == 1 and not address_of(workers)
    return "local" if distributed.is_launched() or alone else "ray"


def check_world(workers: Workers) -> None:
    """Raise SpecError unless the number of processes is the requested number of workers."""
    started = distributed.launched_world_size()
    if not workers.min_count <= started <= workers.max_count:
        how = "torchrun started" if distributed.is_launched() else "this process is"
        raise SpecError(
            f"{workers.count_text} workers are requested, {how} {started}", "workers.count"
        )


def is_remote(workers: Workers) -> bool:
    """Return whether the devices are on another machine, or may be."""
    if launcher_of(workers) != "ray":
        return False
    ray = _connected_ray()
    if ray:
        return sum(node["Alive"] for node in ray.nodes()) > 1
    return bool(address_of(workers))


def can_span_machines(workers: Workers) -> bool:
    """Return whether workers may be started on other machines, some of which may join later."""
    return launcher_of(workers) == "ray" and bool(_connected_ray() or address_of(workers))


def _connected_ray() -> Any:
    """Return the module `ray` if this process is connected to one, such as a program's own."""
    ray = sys.modules.get("ray")
    return ray if ray and ray.is_initialized() else None


def address_of(workers: Workers) -> str | None:
    """Return the address of the Ray cluster to run on, if one is given."""
    return workers.address or os.environ.get("RAY_ADDRESS")
