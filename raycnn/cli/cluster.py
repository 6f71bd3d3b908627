"""`raycnn cluster`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycnn.launch.ray.fleet import State
    from raycnn.launch.ray.machines import Machines

File = Annotated[
    Path, typer.Argument(metavar="MACHINES", help="A YAML file: see cluster/machines.yaml.")
]
RESOURCES = ["CPU", "GPU", "NPU"]

cluster = typer.Typer(
    help="Start, look at and end a Ray cluster of machines one can log in to.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@cluster.command()
def up(file: File) -> None:
    """Start Ray on the machines, by ssh; what runs already is left as it is."""
    from raycnn.launch.ray import fleet, machines

    found = machines.load(file)
    states = fleet.up(found, print)
    _show(states)
    fleet.require_whole(found, states)
    _show_ways_in(found, states[0])


@cluster.command()
def down(file: File) -> None:
    """End what `up` started, and nothing else."""
    from raycnn.launch.ray import fleet, machines

    fleet.down(machines.load(file), print)


@cluster.command()
def status(file: File) -> None:
    """Show the nodes and what they have; exit code 5 unless all are alive."""
    from raycnn.launch.ray import fleet, machines

    found = machines.load(file)
    states = fleet.status(found)
    _show(states)
    fleet.require_whole(found, states)


def _show(states: "list[State]") -> None:
    print("machine".ljust(20) + "address".ljust(18) + "".join(f"{r:>6}" for r in RESOURCES))
    for state in states:
        amounts = "".join(f"{state.total.get(name, 0):>6g}" for name in RESOURCES)
        print(f"{state.host:<20}" + (state.trouble or f"{state.address:<18}{amounts}"))


def _show_ways_in(machines: "Machines", head: "State") -> None:
    from raycnn.launch.ray.connection import TOKEN

    port = machines.ports.dashboard
    print(f"\non these machines: workers.address={head.address}:{machines.ports.head}")
    if not machines.head.here:
        print(f"from elsewhere:    ssh -N -L {port}:127.0.0.1:{port} {machines.head.host}")
    print(f"dashboard, jobs:   http://127.0.0.1:{port}")
    print(f"token:             {TOKEN}")
