"""A cluster of machines that one can log in to: one YAML file in, one frozen Machines out."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator
from typing_extensions import Self

from raycnn.config import yaml_file
from raycnn.config.messages import validate
from raycnn.config.schema import Frozen
from raycnn.config.yaml_file import Where

RAY_WORKERS = range(10002, 20000)  # where Ray's own workers listen

Host = Annotated[str, Field(pattern=r"^([A-Za-z_][\w.-]*@)?[A-Za-z0-9][A-Za-z0-9.:-]*$")]
Port = Annotated[int, Field(ge=1024, le=65535)]
Count = Annotated[int, Field(ge=0)]


class Machine(Frozen):
    """Its host alone, or a mapping."""

    host: Host
    """As ssh knows it: keys, users and ports stand in ~/.ssh/config. localhost is this machine."""
    address: Annotated[str, Field(pattern=r"^[0-9A-Fa-f.:]+$")] | None = None
    """The IP that the other machines reach it by; when absent Ray chooses one."""
    cpus: Count | None = None
    """When absent all; 0 on a head that is to train nothing."""
    npus: Count | None = None
    """Ascend cards; when absent what Ray finds."""
    python: str | None = None
    """When absent the cluster's."""
    setup: str | None = None
    """When absent the cluster's."""

    @model_validator(mode="before")
    @classmethod
    def _bare_host(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @property
    def here(self) -> bool:
        return self.host == "localhost"


class Ports(Frozen):
    """Of the head. Besides these Ray opens others, so the machines trust each other's network."""

    head: Port = 6379
    dashboard: Port = 8265
    """Of the head's loopback alone: the dashboard, and the jobs that are sent."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.head == self.dashboard:
            raise ValueError(f"must differ from each other: {self.head} is both")
        for port in (self.head, self.dashboard):
            if port in RAY_WORKERS:
                raise ValueError(f"{port} is among Ray's workers', {min(RAY_WORKERS)} to 19999")
        return self


class Machines(Frozen):
    """A cluster, said completely. Keys not listed here are refused."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,15}$")]
    """At most 16 small letters, digits and `-`."""
    head: Machine
    workers: list[Machine] = []
    python: str | None = None
    """The Python that has raycnn; when absent the one that runs here, by its path."""
    setup: str = ""
    """A line of bash before it: source /usr/local/Ascend/ascend-toolkit/set_env.sh"""
    ports: Ports = Ports()

    _where: Where = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _no_device_counted_twice(self) -> Self:
        for host, times in Counter(machine.host for machine in self.nodes).items():
            if times > 1 and any(m.cpus is None for m in self.nodes if m.host == host):
                raise ValueError(f"{host} stands here {times} times: say the cpus of each")
        return self

    @property
    def nodes(self) -> list[Machine]:
        """The head, and the workers in order."""
        return [self.head, *self.workers]

    def node_name(self, index: int) -> str:
        return f"{self.name}-{index}"


def load(path: Path) -> Machines:
    """The cluster of a file. Raises SpecError, with file and line, for what cannot be one."""
    cluster: Machines = validate(Machines, *yaml_file.load(path, str(path)))
    return cluster
