"""What differs between versions of Ray, asked of its public names and signatures."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import ray
import ray.train
from ray.train import ScalingConfig

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError

NEVER_S = 1e9


def scaling_config(workers: Workers, **fixed: Any) -> ScalingConfig:
    """Return how many workers Ray is to start.

    Raises ClusterError for a range where this Ray knows none. Ray is not to change their number by
    itself while they train: it would not have them save first.
    """
    if workers.least == workers.most:
        return ScalingConfig(num_workers=workers.most, **fixed)
    monitor = "elastic_resize_monitor_interval_s"  # came with ranges
    if monitor not in signature(ScalingConfig).parameters:
        raise ClusterError(
            f"workers.count: Ray {ray.__version__} starts a fixed number of workers alone; a range "
            f"such as {[workers.least, workers.most]} needs Ray 2.55 or newer"
        )
    return ScalingConfig(num_workers=(workers.least, workers.most), **{monitor: NEVER_S}, **fixed)


def preemption_notice() -> Callable[[], Any]:
    """Return what tells whether a node of the workers will be taken away: a barrier of them all.

    Where Ray does not tell, it returns None for ever.
    """
    return getattr(ray.train, "get_preemption_info", lambda: None)


def cause_of(error: Exception) -> Exception:
    """Return the error of a worker without what Ray puts around the death of an actor."""
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, Exception) else error
