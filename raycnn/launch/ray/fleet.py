"""The machines of a cluster, asked all at once: by ssh, or right here for localhost."""

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raycnn.errors import ClusterError
from raycnn.launch.ray import connection, node
from raycnn.launch.ray.machines import Machine, Machines

CONNECT_S = 10
ANSWER_S = 60  # of a machine, whose `setup` may take its time
START_S = 120  # for the head, and then for all workers
SSH = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "--"]
NO_CONNECTION = 255  # ssh's own exit code
PROGRAM = Path(node.__file__).read_text()

Answer = TypeVar("Answer")
Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Of a node, as its machine and the head see it."""

    host: str
    trouble: str = ""
    """Why it is not alive; empty where it is."""
    address: str = ""
    total: dict[str, float] = field(default_factory=dict)
    """Ray's resources: CPU, GPU, NPU and more."""


def up(machines: Machines, say: Say) -> list[State]:
    """Start what does not run, the head first.

    Raises ClusterError when a machine cannot be reached or does not fit, before anything is
    started, and when Ray does not start on one.
    """
    looks = _whole(_every(machines, node.look, limit_s=ANSWER_S))
    _same_versions(machines, looks)
    missing = [index for index, look in enumerate(looks) if not look["runs"]]
    address = looks[0]["address"]
    secret = token()
    if 0 in missing:
        say(f"starting the head on {machines.head.host}")
        address = _start(machines, 0, secret, _head(machines))
    if not address:
        raise ClusterError(f"the head on {machines.head.host} runs, but is not up yet")
    if workers := [index for index in missing if index]:
        say(f"starting {len(workers)} of {len(machines.workers)} workers")
        joining = ["--address", address]
        _whole(_each(workers, lambda index: _start(machines, index, secret, joining)))
    if not missing:
        say(f"{machines.name} is already up")
    return status(machines, START_S)


def down(machines: Machines, say: Say) -> None:
    """End every process of every node, and no other.

    Raises ClusterError for machines that cannot be reached, once all others are done.
    """
    answers = _every(machines, node.stop, limit_s=ANSWER_S)
    for machine, answer in zip(machines.nodes, answers, strict=True):
        if not isinstance(answer, ClusterError):
            say(f"{machine.host}: {answer} processes ended" if answer else f"{machine.host}: none")
    _whole(answers)


def status(machines: Machines, wait_s: float = 0) -> list[State]:
    """Of the nodes in order; waits so long for those that run to be alive."""
    looks = _every(machines, node.look, limit_s=ANSWER_S)
    runs = [not isinstance(look, ClusterError) and look["runs"] for look in looks]
    known: dict[str, dict[str, Any]] = {}
    if runs[0]:
        limit_s = ANSWER_S + wait_s
        seen = ask(machines, 0, node.nodes, sum(runs), wait_s, limit_s=limit_s)
        known = {one["name"]: one for one in sorted(seen, key=lambda one: one["alive"])}
    return [
        _state(machine, look, known.get(machines.node_name(index)))
        for index, (machine, look) in enumerate(zip(machines.nodes, looks, strict=True))
    ]


def require_whole(machines: Machines, states: list[State]) -> None:
    """Raises ClusterError unless every node is alive."""
    if dead := sum(bool(state.trouble) for state in states):
        raise ClusterError(f"{dead} of {len(states)} nodes of {machines.name} are not alive")


def token() -> str:
    """What this user's clusters ask for: Ray's own file of it here, made when there is none."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = connection.TOKEN
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    connection.hide_token()
    return path.read_text().strip()


def ask(
    machines: Machines,
    index: int,
    function: Callable[..., Answer],
    *arguments: Any,
    limit_s: float,
) -> Answer:
    """What a function of node.py returns on a node's machine. Raises ClusterError."""
    machine = machines.nodes[index]
    given = json.dumps([machines.node_name(index), *arguments])
    call = f"import json\nprint(json.dumps({function.__name__}(*json.loads({given!r}))))\n"
    words = _words(machines, machine)
    try:
        done = subprocess.run(
            words,
            input=f"{PROGRAM}\n{call}",  # a token among the words would be there for all to read
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except FileNotFoundError:
        raise ClusterError(f"{words[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{machine.host}: no answer within {limit_s:g} s") from None
    except (OSError, ValueError) as error:  # words that no process can be started with
        raise ClusterError(f"{machine.host}: {error}") from None
    if done.returncode == 0:
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise ClusterError(
                f"{machine.host}: `python`, or `setup` before it, ran no Python"
            ) from None
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == NO_CONNECTION and not machine.here:
        raise ClusterError(f"{machine.host} cannot be reached by ssh: {said[-1]}")
    raise ClusterError(f"{machine.host}: {said[-1]}")


def _words(machines: Machines, machine: Machine) -> list[str]:
    setup = machines.setup if machine.setup is None else machine.setup
    python = machine.python or machines.python or sys.executable
    line = f"{{ {setup or ':'}\n}} </dev/null >&2 && exec {shlex.quote(python)} -"
    if machine.here:
        return ["bash", "-c", line]
    return [*SSH, machine.host, f"bash -c {shlex.quote(line)}"]


def _every(
    machines: Machines, function: Callable[..., Answer], limit_s: float
) -> list[Answer | ClusterError]:
    everyone = range(len(machines.nodes))
    return _each(everyone, lambda index: ask(machines, index, function, limit_s=limit_s))


def _each(indices: Sequence[int], ask_one: Callable[[int], Answer]) -> list[Answer | ClusterError]:
    """Ask these nodes, all at once."""

    def one(index: int) -> Answer | ClusterError:
        try:
            return ask_one(index)
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(len(indices)) as pool:
        return list(pool.map(one, indices))


def _whole(answers: list[Answer | ClusterError]) -> list[Answer]:
    errors = [str(answer) for answer in answers if isinstance(answer, ClusterError)]
    if errors:
        raise ClusterError("\n".join(errors))
    return [answer for answer in answers if not isinstance(answer, ClusterError)]


def _same_versions(machines: Machines, looks: list[dict[str, Any]]) -> None:
    """Raises ClusterError: Ray's nodes talk to each other only in one version of it and Python."""
    troubles = [
        f"{machine.host}: {name} {there or 'is missing'} there, {here} here"
        for machine, look in zip(machines.nodes, looks, strict=True)
        for name, here in node.versions().items()
        if (there := look["versions"][name]) != here
    ]
    if troubles:
        raise ClusterError("\n".join(troubles))


def _start(machines: Machines, index: int, secret: str, place: list[str]) -> str:
    machine = machines.nodes[index]
    options = [*place, "--dashboard-agent-listen-port", "0"]
    if machine.address:
        options += ["--node-ip-address", machine.address]
    if machine.cpus is not None:
        options += ["--num-cpus", str(machine.cpus)]
    if machine.npus is not None:
        options += ["--resources", json.dumps({"NPU": machine.npus})]
    limit_s = START_S + ANSWER_S
    return ask(machines, index, node.start, secret, options, START_S, limit_s=limit_s)


def _head(machines: Machines) -> list[str]:
    ports = machines.ports
    return [
        "--head", "--port", str(ports.head), "--include-dashboard", "true",
        "--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports.dashboard),
    ]  # fmt: skip


def _state(
    machine: Machine, look: dict[str, Any] | ClusterError, known: dict[str, Any] | None
) -> State:
    if isinstance(look, ClusterError):
        return State(machine.host, str(look))
    if not look["runs"]:
        return State(machine.host, "does not run")
    if not known:
        return State(machine.host, "runs, but the head does not know it")
    if not known["alive"]:
        return State(machine.host, f"the head has lost it: {known['reason']}")
    return State(machine.host, "", known["address"], known["total"])
