"""Resources that workers request from Ray, and those that nodes have. Does not import Ray."""

from dataclasses import dataclass

from raycnn.config.schema import Workers
from raycnn.errors import ClusterError
from raycnn.runtime.device import DEVICE_KINDS, DeviceKind


@dataclass(frozen=True)
class Node:
    address: str
    total: dict[str, float]

    def fits(self, ask: dict[str, float]) -> int:
        """Return how many workers that request `ask` fit into this node."""
        return min(int(self.total.get(key, 0) // amount) for key, amount in ask.items())


def kind_of(workers: Workers, nodes: list[Node]) -> DeviceKind:
    """Return the kind of device that a job's workers use on this cluster."""
    if workers.device != "auto":
        return DEVICE_KINDS[workers.device]
    there = (
        kind
        for kind in DEVICE_KINDS.values()
        if kind.automatic and capacity(nodes, {kind.resource: 1})
    )
    return next(there, DEVICE_KINDS["cpu"])


def resources_per_worker(workers: Workers, kind: DeviceKind, nodes: list[Node]) -> dict[str, float]:
    """Return the resources of each worker; without `cpus`, the most CPUs with which all fit.

    For a range of workers, "all" is as many as fit. Raises ClusterError, with a table of the nodes,
    when too few fit.
    """
    device = {kind.resource: 1.0} if kind.resource != "CPU" else {}
    least = {"CPU": float(workers.cpus or 1)} | device
    count = min(workers.max_count, capacity(nodes, least))
    if count < workers.min_count:
        raise ClusterError(
            f"{workers.count_text} workers of {format_resources(least)} each do not fit into what "
            f"there is:\n{table(nodes)}"
        )
    most = int(max(node.total.get("CPU", 0) for node in nodes))
    asks = ({"CPU": float(cpus)} | device for cpus in range(workers.cpus or most, 0, -1))
    return next(ask for ask in asks if capacity(nodes, ask) >= count)


def capacity(nodes: list[Node], ask: dict[str, float]) -> int:
    """Return how many workers that request `ask` fit into the nodes."""
    return sum(node.fits(ask) for node in nodes)


def table(nodes: list[Node]) -> str:
    resources = [*dict.fromkeys(kind.resource for kind in reversed(DEVICE_KINDS.values()))]
    lines = ["node".ljust(20) + "".join(name.rjust(8) for name in resources)]
    for node in nodes:
        amounts = (f"{node.total.get(name, 0):g}".rjust(8) for name in resources)
        lines.append(node.address.ljust(20) + "".join(amounts))
    return "\n".join(lines)


def total(nodes: list[Node]) -> str:
    """Return the devices and CPUs of all nodes, for display."""
    sums = {
        k.resource: sum(n.total.get(k.resource, 0) for n in nodes) for k in DEVICE_KINDS.values()
    }
    there = {name: amount for name, amount in sums.items() if amount}
    return f"{format_resources(there)} on {len(nodes)} node{'s' * (len(nodes) > 1)}"


def format_resources(ask: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in ask.items())
