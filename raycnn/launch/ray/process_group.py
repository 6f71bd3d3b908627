"""The process group of a job's workers, which they create themselves.

Ray's own backend would create it before a worker can choose its network interface, or see the
devices of the other workers on its node, and after a loss it waits half a minute for dead ones.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable

import ray
import ray.train

from raycnn.launch.ray.channel_actor import Member
from raycnn.runtime import distributed

VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "NPU": "ASCEND_RT_VISIBLE_DEVICES"}
SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


def own_member(resource: str) -> Member:
    """Return this worker as a Member; `resource` is Ray's name of its kind of device."""
    context = ray.get_runtime_context()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    ids = context.get_accelerator_ids().get(resource, [])
    return Member(context.get_node_id(), ray.util.get_node_ip_address(), port, list(ids))


def share_devices(resource: str, own: Member, members: Iterable[Member]) -> int:
    """Make the devices of all members on this node visible; return the index of this worker's own.

    NCCL and HCCL need to see the devices of the other workers on the same node, but Ray shows each
    worker only its own: it shares CUDA devices when it creates the process group, and NPUs never.
    Must be called before torch initializes devices.
    """
    if resource not in VISIBLE or not own.accelerators:
        return 0
    ids = {id for member in members if member.node == own.node for id in member.accelerators}
    visible = sorted(ids, key=lambda id: (len(id), id))  # torch_npu needs ascending ids
    os.environ[VISIBLE[resource]] = ",".join(visible)
    return visible.index(own.accelerators[0])


def join_process_group(backend: str, timeout_s: int, members: list[Member]) -> None:
    """Join the process group of all workers; a single worker needs none."""
    if len(members) == 1:
        return
    context, first = ray.train.get_context(), members[0]
    if len({member.node for member in members}) > 1:
        choose_interface()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(len(members)),
        "MASTER_ADDR": first.address,
        "MASTER_PORT": str(first.port),
    }
    distributed.init_process_group(backend, timeout_s)


def choose_interface() -> None:
    """Have gloo use the network interface that Ray uses, unless the node's environment names one.

    By default gloo uses the interface of the host name's address: often loopback, which no other
    node can reach, or a network that other nodes are not on.
    """
    interface = find_interface(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def find_interface(address: str) -> str | None:
    """Return the network interface with this IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
