"""Resources that workers request from Ray, and those that nodes have. Does not import Ray."""

from dataclasses import dataclass

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError, plural
from raycnn.runtime.device import DEVICE_KINDS, DeviceKind

RESOURCES = [*dict.fromkeys(kind.resource for kind in DEVICE_KINDS.values())]
"""Ray's names of the resources of all device kinds, each once."""


@dataclass(frozen=True)
class Node:
    """A node of a cluster, and its resources in total."""

    address: str
    total: dict[str, float]

    def fits(self, worker_resources: dict[str, float]) -> int:
        """Return how many workers with these resources each fit into this node."""
        return min(
            int(self.total.get(key, 0) // amount) for key, amount in worker_resources.items()
        )


def kind_of(workers: Workers, nodes: list[Node]) -> DeviceKind:
    """Return the kind of device that a job's workers use on this cluster."""
    if workers.device != "auto":
        return DEVICE_KINDS[workers.device]
    available = (
        kind
        for kind in DEVICE_KINDS.values()
        if kind.automatic and capacity(nodes, {kind.resource: 1})
    )
    return next(available, DEVICE_KINDS["cpu"])


def resources_per_worker(workers: Workers, kind: DeviceKind, nodes: list[Node]) -> dict[str, float]:
    """Return the resources of each worker; without `cpus`, the most CPUs with which all fit.

    For a range of workers, "all" is as many as fit. Raises ClusterError, with a table of the nodes,
    when too few fit.
    """
    device = {kind.resource: 1.0} if kind.resource != "CPU" else {}
    minimum = {"CPU": float(workers.cpus or 1)} | device
    count = min(workers.max_count, capacity(nodes, minimum))
    if count < workers.min_count:
        raise ClusterError(
            f"{workers.count_text} workers of {format_resources(minimum)} each do not fit into "
            f"the available nodes:\n{table(nodes)}"
        )
    most = int(max(node.total.get("CPU", 0) for node in nodes))
    candidates = ({"CPU": float(cpus)} | device for cpus in range(workers.cpus or most, 0, -1))
    return next(resources for resources in candidates if capacity(nodes, resources) >= count)


def capacity(nodes: list[Node], worker_resources: dict[str, float]) -> int:
    """Return how many workers with these resources each fit into the nodes."""
    return sum(node.fits(worker_resources) for node in nodes)


def table(nodes: list[Node]) -> str:
    """Return the resources of each node as a table, for display."""
    resources = RESOURCES[::-1]
    lines = ["node".ljust(20) + "".join(name.rjust(8) for name in resources)]
    for node in nodes:
        amounts = (f"{node.total.get(name, 0):g}".rjust(8) for name in resources)
        lines.append(node.address.ljust(20) + "".join(amounts))
    return "\n".join(lines)


def total(nodes: list[Node]) -> str:
    """Return the devices and CPUs of all nodes, for display."""
    sums = {name: sum(node.total.get(name, 0) for node in nodes) for name in RESOURCES}
    available = {name: amount for name, amount in sums.items() if amount}
    return f"{format_resources(available)} on {len(nodes)} {plural('node', len(nodes))}"


def format_resources(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
