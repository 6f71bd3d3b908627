"""The devices that the workers of a node see: each its own, as Ray starts them, or all of theirs.

NCCL and HCCL find a neighbour on the same node by the device that this process sees of it. Ray
shares CUDA devices when it makes the process group, which it does too early here, and NPUs never.
"""

import os
from collections.abc import Iterable

from raycnn.launch.ray.channel import Member

VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "NPU": "ASCEND_RT_VISIBLE_DEVICES"}


def share(resource: str, own: Member, members: Iterable[Member]) -> int:
    """Have this worker see the devices of all members on its node; return the index of its own.

    To be called before torch looks for devices.
    """
    if resource not in VISIBLE or not own.accelerators:
        return 0
    ids = {id for member in members if member.node == own.node for id in member.accelerators}
    visible = sorted(ids, key=lambda id: (len(id), id))  # numbers rise, or torch_npu sees none
    os.environ[VISIBLE[resource]] = ",".join(visible)
    return visible.index(own.accelerators[0])
