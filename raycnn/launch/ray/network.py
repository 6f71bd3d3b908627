"""Which way a worker's collectives go, where its node has several."""

import fcntl
import os
import socket
import struct

import ray

SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


def choose() -> None:
    """Have gloo listen where Ray does, unless the node's own environment says where.

    Left alone it listens where the node's name leads: often to loopback, which no other node
    reaches, or to a network that the others are not on.
    """
    found = interface(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def interface(address: str) -> str | None:
    """The network interface that has this IPv4 address; None for no such, as for an alias."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
