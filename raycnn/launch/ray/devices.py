"""Make the devices of all workers of a node visible to each of them.

NCCL and HCCL need to see the devices of the other workers on the same node, but Ray shows each
worker only its own. Ray shares CUDA devices when it creates the process group, which is too early
here, and never shares NPUs.
"""

import os
from collections.abc import Iterable

from raycnn.launch.ray.channel import Member

VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "NPU": "ASCEND_RT_VISIBLE_DEVICES"}


def share(resource: str, own: Member, members: Iterable[Member]) -> int:
    """Make the devices of all members on this node visible; return the index of this worker's own.

    Must be called before torch initializes devices.
    """
    if resource not in VISIBLE or not own.accelerators:
        return 0
    ids = {id for member in members if member.node == own.node for id in member.accelerators}
    visible = sorted(ids, key=lambda id: (len(id), id))  # torch_npu needs ascending ids
    os.environ[VISIBLE[resource]] = ",".join(visible)
    return visible.index(own.accelerators[0])
