"""The fixtures of all tests. They read ../shared/data, or RAYCNN_DATA, and skip where neither is."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from raycnn.cli import main
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from tests.support.jobs import ROOT, TINY
from tests.support.processes import Call
from tests.support.searches import read  # noqa: F401

if TYPE_CHECKING:
    from tests.support.s3 import Server


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file in one process; first, and in one, all that start Ray."""
    items.sort(key=lambda item: not item.get_closest_marker("ray"))  # they take longest together
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.location[0]
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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The decoded images of a test run, apart from the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RAYCNN_CACHE"] = str(folder)
    # Ray's workers give way to other processes by default: here to tests that run beside theirs.
    os.environ.setdefault("RAY_worker_niceness", "0")
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
