"""Differences between versions of Ray, detected by its public names and signatures."""

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import ScalingConfig

from raycnn.errors import ClusterError

if TYPE_CHECKING:  # slow to import, in the process of Ray's controller too
    from raycnn.config.schema import Workers

NEVER_S = 1e9


def scaling_config(workers: "Workers", **fixed: Any) -> ScalingConfig:
    """Return Ray's ScalingConfig for a job's workers.

    Ray itself must not resize the group during training, since it would not save first. Raises
    ClusterError for a range where this version of Ray does not support one.
    """
    if workers.min_count == workers.max_count:
        return ScalingConfig(num_workers=workers.max_count, **fixed)
    monitor = "elastic_resize_monitor_interval_s"  # introduced together with ranges
    if monitor not in signature(ScalingConfig).parameters:
        raise ClusterError(
            f"workers.count: Ray {ray.__version__} supports only a fixed number of workers; a "
            f"range such as {[workers.min_count, workers.max_count]} needs Ray 2.55 or newer"
        )
    return ScalingConfig(
        num_workers=(workers.min_count, workers.max_count), **{monitor: NEVER_S}, **fixed
    )


def preemption_notice() -> Callable[[], Any]:
    """Return a function that returns a preemption notice for a node of the workers, or None.

    It is a barrier: all workers must call it. On versions of Ray without notices it returns None.
    """
    return getattr(ray.train, "get_preemption_info", lambda: None)


def cause_of(error: Exception) -> Exception:
    """Return the error of a worker without Ray's wrapper around the death of an actor."""
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, Exception) else error
