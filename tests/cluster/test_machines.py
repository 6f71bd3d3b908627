"""`raycnn cluster` on a head and a worker of this machine, each with processes and folders of its own.

The worker is reached by an `ssh` that runs here what it is told to run elsewhere, as sshd would.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raycnn.cli import main
from raycnn.config.schema import JobSpec
from raycnn.launch.ray import connection, node
from tests.conftest import ROOT, raycnn

SSH = """#!/bin/bash
while [ "$1" != -- ]; do shift; done
if [ "$2" = gone ]; then
    echo "ssh: connect to host gone port 22: Connection timed out" >&2
    exit 255
fi
exec /bin/sh -c "$3"
"""
NAME = f"t{os.getpid()}"

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Run a command line here: its exit code, and what it said. The token is the test's own."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "ssh").write_text(SSH)
    (folder / "ssh").chmod(0o755)

    def run(*words: object) -> tuple[int, str]:
        said = StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(said),
            redirect_stderr(said),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr("sys.argv", ["raycnn", "cluster", *map(str, words)])
            patch.setattr(connection, "TOKEN", folder / "ray" / "token")
            patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
            patch.delenv("RAY_AUTH_TOKEN", raising=False)
            main()
        return int(ended.value.code or 0), said.getvalue()

    yield run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a", "m.yaml: head: is missing"),
        ("{name: a, head: b, wrokers: []}", "m.yaml:1: wrokers: unknown key 'wrokers'; did you mean 'workers'? (keys: head, name,"),
        ("{name: a, head: {host: b, npu: 1}}", "head.npu: unknown key 'npu'; did you mean 'npus'?"),
        ("{name: a, head: -oProxyCommand=x}", "head.host: "),
        ("{name: a/b, head: b}", "name: "),
        ("{name: a, head: b, ports: {head: 10500}}", "ports: 10500 is among Ray's workers', 10002 to 19999"),
        ("{name: a, head: b, ports: {head: 8265}}", "ports: must differ from each other"),
        ("{name: a, head: b, workers: [b]}", "b stands here 2 times: say the cpus of each"),
        ("{name: a, head: localhost, python: /nowhere/python}", "localhost: bash: line 2: /nowhere/python: No such file"),
        ("{name: a, head: localhost, setup: source /nowhere.sh}", "localhost: bash: line 1: /nowhere.sh: No such file"),
        ("{name: a, head: localhost, python: /bin/true}", "localhost: `python`, or `setup` before it, ran no Python"),
        ("{name: a, head: localhost, python: cat}", "ran no Python"),
        ("{name: a, head: localhost, setup: exit 0}", "ran no Python"),
        ('{name: a, head: localhost, setup: "a\\0b"}', "localhost: embedded null byte"),
        (r"""{name: a, head: localhost, setup: "printf '\\377' >&2; exit 3"}""", "localhost: \ufffd"),
        ("{name: a, head: localhost, workers: [gone]}", "gone cannot be reached by ssh: ssh: connect to host gone port 22: Connection timed out"),
        ("{name: a, head: localhost, setup: export PYTHONPATH=OTHER}", "localhost: Ray 0.1 there, "),
        ("{name: a, head: localhost, python: BARE}", "localhost: Ray is missing there, "),
        ("{name: a, head: localhost, setup: export TMPDIR=OPEN}", "is not yours alone (mode 0700)"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_cluster_is_said_before_anything_starts(
    call: Call, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / f"raycnn-{os.getuid()}").mkdir(mode=0o755)
    other = tmp_path / "ray-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 0.1\n")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    for word, path in (("OTHER", tmp_path), ("BARE", bare), ("OPEN", tmp_path)):
        text = text.replace(word, str(path))
    file = tmp_path / "m.yaml"
    file.write_text(text)
    code, heard = call("up", file)
    assert said in heard and "Traceback" not in heard
    assert code == (2 if "m.yaml" in heard else 5)
    assert "starting" not in heard


def test_the_example_is_a_cluster(call: Call) -> None:
    from raycnn.launch.ray import machines

    example = machines.load(ROOT / "cluster" / "machines.yaml")
    assert example.workers and any(machine.npus for machine in example.nodes)


@dataclass(frozen=True)
class Up:
    file: Path
    said: str
    port: int
    dashboard: str
    address: str
    """IP of the head."""

    @property
    def nodes(self) -> list[dict[int, int]]:
        return [node.processes(f"{NAME}-{index}") for index in (0, 1)]


@pytest.fixture(scope="module")
def two(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    ports = _free_ports(2)
    file = tmp_path_factory.mktemp("up") / "machines.yaml"
    file.write_text(
        f"name: {NAME}\n"
        "head: {host: localhost, cpus: 1}\n"
        "workers: [{host: elsewhere, cpus: 1, npus: 2}]\n"
        f"setup: export SAID='it''s set'\n"
        f"ports: {{head: {ports[0]}, dashboard: {ports[1]}}}\n"
    )
    try:
        code, said = call("up", file)
        assert code == 0, said
        address = said.partition("workers.address=")[2].partition(":")[0]
        yield Up(file, said, ports[0], f"http://127.0.0.1:{ports[1]}", address)
    finally:
        call("down", file)
        for index in (0, 1):
            shutil.rmtree(node.folder(f"{NAME}-{index}"), ignore_errors=True)


@pytest.mark.ray
def test_both_nodes_are_alive_and_what_they_have_is_shown(call: Call, two: Up) -> None:
    assert "starting the head on localhost\nstarting 1 of 1 workers\n" in two.said
    code, said = call("status", two.file)
    rows = [line.split() for line in said.splitlines()[1:]]
    assert code == 0 and [(row[0], *row[2:]) for row in rows] == [
        ("localhost", "1", "0", "0"),
        ("elsewhere", "1", "0", "2"),
    ]


@pytest.mark.ray
def test_a_second_up_leaves_it_as_it_is(call: Call, two: Up) -> None:
    before = two.nodes
    code, said = call("up", two.file)
    assert code == 0 and f"{NAME} is already up" in said and "starting" not in said
    assert all(old.keys() <= new.keys() for old, new in zip(before, two.nodes, strict=True))


@pytest.mark.ray
def test_nobody_comes_in_without_the_token(call: Call, two: Up) -> None:
    path = Path(two.said.partition("token:")[2].strip())
    token = path.read_text()
    for file in (path, *(node.folder(f"{NAME}-{index}") / "token" for index in (0, 1))):
        assert file.read_text() == token and file.stat().st_mode & 0o777 == 0o600
    jobs = f"{two.dashboard}/api/jobs/"
    with pytest.raises(HTTPError, match="401"):
        urlopen(jobs)
    with urlopen(Request(jobs, headers={"Authorization": f"Bearer {token}"})) as answer:
        assert answer.status == 200
    with grpc.insecure_channel(f"{two.address}:{two.port}") as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        question = gcs_service_pb2.GetAllNodeInfoRequest()
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            head.GetAllNodeInfo(question, timeout=5)
    words = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(token.encode() in each for each in words)


@pytest.mark.ray
def test_the_dashboard_listens_on_loopback_alone(two: Up) -> None:
    port = int(two.dashboard.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    if two.address != "127.0.0.1":
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((two.address, port), timeout=5)


@pytest.mark.ray
def test_ray_clients_server_is_not_there(two: Up) -> None:
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in two.nodes[0]]
    assert any(b"gcs_server" in each for each in words)
    assert not any(b"ray.util.client" in each for each in words)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_trains_on_both_nodes(two: Up, job: Callable[..., JobSpec], tmp_path: Path) -> None:
    from raycnn.runs.directory import Run

    token = Path(two.said.partition("token:")[2].strip())
    spec = (
        Run.create(job(workers__count=2, workers__cpus=1, workers__device="cpu")).folder
        / "job.yaml"
    )
    address = f"workers.address={two.address}:{two.port}"
    done = raycnn("train", spec, address, cwd=tmp_path, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_down_ends_what_up_started_and_nothing_else(call: Call, two: Up) -> None:
    """The last test here: it ends the cluster. A process of a node that is named alike lives on."""
    alike = f"{Path(tempfile.gettempdir()) / f'raycnn-{os.getuid()}' / NAME}-10"
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)", "ray", "start", "--head", "--block"],
        env=os.environ | {node.MARK: alike}, start_new_session=True,
    )  # fmt: skip
    try:
        counts = [len(pids) for pids in two.nodes]
        assert min(counts) > 3
        code, said = call("down", two.file)
        assert code == 0
        assert said == "".join(
            f"{host}: {count} processes ended\n"
            for host, count in zip(("localhost", "elsewhere"), counts, strict=True)
        )
        assert two.nodes == [{}, {}] and other.poll() is None
        assert not (node.folder(f"{NAME}-0") / "token").exists()
    finally:
        other.kill()
        other.wait()
    code, said = call("status", two.file)
    assert code == 5 and said.count("does not run") == 2
    assert f"raycnn: 2 of 2 nodes of {NAME} are not alive" in said
    assert call("down", two.file) == (0, "localhost: none\nelsewhere: none\n")


def _free_ports(count: int) -> list[int]:
    """Above those that Ray's workers take."""
    free: list[int] = []
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as taken:
            if len(free) < count and taken.connect_ex(("127.0.0.1", port)):
                free.append(port)
    return free
