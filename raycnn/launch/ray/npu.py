"""NPUs in Ray's workers, for which Ray Train does only a part of what it does for GPUs."""

import os
from collections import defaultdict
from typing import Any

import ray
from ray.train import ControllerError
from ray.train.v2._internal.execution.worker_group import Worker

from raycnn.errors import RaycnnError
from raycnn.runtime import device

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def share(workers: list[Worker]) -> None:
    """Have each worker see the NPUs of all workers on its node, before it imports ray.train.torch.

    Ray lets each see its own alone, and HCCL may then not find the neighbours'. Raises
    ControllerError around an EnvironmentUnavailable when torch_npu does not load; without NPUs
    it is not loaded.
    """
    seen: dict[str, set[int]] = defaultdict(set)
    for worker in workers:
        ids = worker.metadata.accelerator_ids.get("NPU", [])
        seen[worker.metadata.node_id].update(map(int, ids))
    shown = (",".join(map(str, sorted(seen[worker.metadata.node_id]))) for worker in workers)
    asked: list[Any] = [
        worker.execute_async(_see, ids) for worker, ids in zip(workers, shown, strict=True)
    ]
    for error in filter(None, ray.get(asked)):
        raise ControllerError(error)  # of any other class Ray would show the traceback


def _see(ids: str) -> RaycnnError | None:
    """In a worker. The numbers rise, or torch_npu takes them for none."""
    if not ids:
        return None
    os.environ[VISIBLE] = ids
    try:
        device.load_npu()
    except RaycnnError as error:
        return error
    return None
