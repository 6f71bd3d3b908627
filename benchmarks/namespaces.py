"""A network of machines on this one: Linux namespaces, each with processes, mounts and an address.

Made with util-linux and iproute2, by root or by whoever may have user namespaces. All of it ends
with one process. Nothing outside sees the network, so its addresses and ports are free.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount")
APART = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
AS_ROOT = ["--user", "--map-root-user"] if os.getuid() else []
INTO = ["-U", "--preserve-credentials"] if os.getuid() else []
LIFE_S = 4 * 3600  # should nobody end it


def why_not() -> str | None:
    """Return what keeps this machine from having machines in it; None if nothing does."""
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"needs {', '.join(lacking)} of Linux"
    trial = [*APART, *AS_ROOT, "ip", "link", "add", "net", "type", "bridge"]
    tried = subprocess.run(trial, capture_output=True, text=True)
    return f"namespaces are not for this user: {tried.stderr}" if tried.returncode else None


class Machine:
    """A process in namespaces of its own, which end with it."""

    def __init__(self, address: str, command: list[str]):
        self.address = address
        alive = ["sh", "-c", f"echo alive; exec sleep {LIFE_S}"]
        self.process = subprocess.Popen([*command, *alive], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline(), f"{command} did not start"
        self.pid = self.process.pid
        while inner := child_of(self.pid):
            self.pid = inner
        self.network = os.readlink(f"/proc/{self.pid}/ns/net")

    def inside(self, *words: str | Path) -> list[str]:
        """Return the command line that runs another one in here."""
        return ["nsenter", "-t", str(self.pid), *INTO, "-n", "-m", "-p", "--", *map(str, words)]

    def run(self, script: str) -> str:
        return subprocess.run(
            self.inside("sh", "-ec", script), check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def hide(self, folder: Path) -> None:
        """Mount an empty folder of its own there."""
        self.run(f"mount -t tmpfs none '{folder}'")

    def runs(self, word: str) -> list[int]:
        """Return its processes with this word in their command line, by their numbers outside."""
        return [
            pid for pid, network, name in _processes() if self.network == network and word in name
        ]

    @property
    def is_up(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill all its processes at once, and its network with them."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


class Network:
    """One machine, and others that it is linked to."""

    def __init__(self) -> None:
        self.first = Machine("10.0.0.1", [*APART, *AS_ROOT])
        self.others: list[Machine] = []
        self.first.run(
            "ip link set lo up; ip link add net type bridge; "
            f"ip addr add {self.first.address}/24 dev net; ip link set net up"
        )

    def add(self) -> Machine:
        number = len(self.others) + 2
        added = Machine(f"10.0.0.{number}", self.first.inside(*APART))
        self.others.append(added)
        link = f"to{number}"
        self.first.run(
            f"ip link add {link} type veth peer name eth0 netns {self._pid(added)}; "
            f"ip link set {link} master net up"
        )
        address = f"ip addr add {added.address}/24 dev eth0"
        added.run(f"ip link set lo up; ip link set eth0 up; {address}")
        return added

    def _pid(self, machine: Machine) -> str:
        """Return the number of a machine's process on the first machine."""
        lines = Path(f"/proc/{machine.pid}/status").read_text().splitlines()
        *_, on_first, _ = next(line for line in lines if line.startswith("NSpid:")).split()
        return on_first


@contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        yield made
    finally:
        made.first.kill()
        for machine in (made.first, *made.others):
            with machine.process:  # it ends with the first one
                pass


def child_of(pid: int) -> int | None:
    """Return the first child of a process, None if it has none."""
    return next(iter(children_of(pid)), None)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _processes() -> Iterator[tuple[int, str, str]]:
    """Yield the number, the network and the command line of each process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            network, name = os.readlink(process / "ns" / "net"), (process / "cmdline").read_text()
            yield int(process.name), network, name
        except OSError:  # gone
            continue
