"""Choose the network interface of a worker's collectives on nodes that have several."""

import fcntl
import os
import socket
import struct

import ray

SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


def choose_interface() -> None:
    """Have gloo use the interface that Ray uses, unless the node's environment names one.

    By default gloo uses the interface of the host name's address: often loopback, which no other
    node can reach, or a network that other nodes are not on.
    """
    found = interface(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def interface(address: str) -> str | None:
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
