"""What the tests share. They read ../shared/data, or RAYCNN_DATA, and skip where neither is."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file

from raycnn.cli import main
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.launch.worker import train_worker
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import FolderChannel
from raycnn.training.callbacks import Event
from tests.support.searches import read  # noqa: F401

if TYPE_CHECKING:
    from tests.support.s3 import Server

ROOT = Path(__file__).parent.parent
SEARCHES = sorted((ROOT / "jobs").glob("*.tune.yaml"))
JOBS = sorted({*(ROOT / "jobs").glob("*.yaml")} - {*SEARCHES})

TINY = {
    "name": "tiny",
    "data": {"name": "digits", "limit": 200, "transforms": [{"name": "resize", "size": 12}]},
    "model": {"name": "lenet", "activation": "relu"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "schedule": {"name": "cosine", "warmup": 0.2},
    "train": {"epochs": 3, "batch_size": 32},
    "storage": {"report": False},
}

SomeEvent = TypeVar("SomeEvent", bound=Event)
Weights = dict[str, torch.Tensor]
Call = Callable[..., tuple[int, str, str]]


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file in one process, and all that start Ray in one: it fills a machine."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Whatever a test puts in here is ended, also when it fails."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run a command line here, in the test's folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["raycnn", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, of this size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The decoded images of a test run, apart from the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RAYCNN_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder


@pytest.fixture(scope="session")
def s3() -> Iterator["Server"]:
    """A server of S3's protocol; the credentials for it are in the environment."""
    from tests.support.s3 import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("RAYCNN_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no real images: {folder} holds none (RAYCNN_DATA names a folder that does)")
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., JobSpec]:
    """A job of a second, stored in the test's own folder, with dotted keys changed."""

    def make(**changes: Any) -> JobSpec:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return job_from_tree(TINY).change({"storage.path": str(tmp_path / "runs")} | dotted)

    return make


def train(job: JobSpec, run: Run | None = None, stop_at: int | None = None) -> Run:
    """Train here, in a new run or an old one; be asked to stop when so many steps are done."""
    run = run or Run.create(job)
    steps = 0

    def asked() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    with closing(FolderChannel(run, job.workers.timeout_s, asked)) as channel:
        train_worker(job, run, torch.device("cpu"), channel)
    return run


def happened(run: Run, kind: type[SomeEvent]) -> list[SomeEvent]:
    """The events of a run of this type, oldest first."""
    return [event for event in run.events() if isinstance(event, kind)]


def weights(run: Run, which: str = "last") -> Weights:
    return load_file(run.weights(which) / "model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def distance(one: Weights, other: Weights) -> float:
    return max((one[key] - other[key]).abs().max().item() for key in one)


def numbers(run: Run) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    clock = {"images_per_s", "time_s"}
    return [{k: v for k, v in row.items() if k not in clock} for row in run.rows()]


def raycnn(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "raycnn", *map(str, words)],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def workers(
    count: int,
    spec: Path,
    *changes: str,
    cwd: Path,
    verb: str = "train",
    program: tuple[str, str] = ("-m", "raycnn"),
    missing: int = 0,
) -> list[subprocess.Popen[str]]:
    """Start `count` processes that meet as torchrun's do, and wait for some that are missing."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program, verb, str(spec), *changes],
            cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count + missing),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]  # fmt: skip


def wait_for(
    what: Callable[[], object], process: subprocess.Popen[str], limit_s: float = 200
) -> None:
    """While the process lives, and not for ever."""
    deadline = time.monotonic() + limit_s
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(processes: list[subprocess.Popen[str]], limit_s: float = 300) -> tuple[set[int], str]:
    """Wait for all of them: their exit codes, and all they said on stderr."""
    said = "".join(process.communicate(timeout=limit_s)[1] for process in processes)
    return {process.returncode for process in processes}, said


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
