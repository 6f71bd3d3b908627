"""The command `raycnn doctor`: check versions and devices of this machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import AsJson, Runs

if TYPE_CHECKING:
    from raycnn.analysis.doctor import DoctorReport

WIDTH = 16


def doctor(
    device: Annotated[
        str | None,
        typer.Option("--device", help="A device kind: exit 3, and why, where it cannot work."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="HOST:PORT of a Ray head: look at its nodes.")
    ] = None,
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Show installed versions and devices, and report what is missing or incompatible."""
    from raycnn.analysis.doctor import check_environment
    from raycnn.errors import EnvironmentUnavailable
    from raycnn.runtime.device import find

    refused: EnvironmentUnavailable | None = None
    try:
        find(device or "auto")  # for an NPU this loads torch_npu, which the report needs
    except EnvironmentUnavailable as error:
        refused = error
    report = check_environment(Path(runs).absolute())
    nodes = _nodes(address) if address else {}
    if as_json:
        print(json.dumps({**asdict(report), "nodes": nodes}, indent=1))
    else:
        _show(report, nodes)
        if not report.problems and not refused:
            print("no problems")
    if refused:
        raise refused


def _nodes(address: str) -> dict[str, dict[str, float]]:
    from raycnn.config.schema import Workers
    from raycnn.launch.ray import connection

    return {node.address: node.total for node in connection.find_nodes(Workers(address=address))}


def _show(report: "DoctorReport", nodes: dict[str, dict[str, float]]) -> None:
    for name, version in report.versions.items():
        print(f"{name:<{WIDTH}}{version or '-'}")
    for kind, names in report.devices.items():
        print(f"{kind + ' devices':<{WIDTH}}{len(names)}  {', '.join(sorted(set(names)))}".rstrip())
    print(f"{'cpus':<{WIDTH}}{report.cpus}")
    print(f"{'backends':<{WIDTH}}{', '.join(report.backends)}")
    for folder, free in report.free.items():
        print(f"{'free':<{WIDTH}}{free / 2**30:,.1f} GiB in {folder}")
    for address, total in nodes.items():
        amounts = (f"{total.get(name, 0):g} {name}" for name in ("CPU", "GPU", "NPU"))
        print(f"{'node':<{WIDTH}}{address}: {', '.join(amounts)}")
    for problem in report.problems:
        print(f"problem: {problem}")
