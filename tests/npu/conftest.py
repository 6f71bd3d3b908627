"""The simulated NPU, for processes that a test starts."""

import os
from pathlib import Path

import pytest

from tests.support.npu import simulated


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import the simulated torch_npu from."""
    return simulated(tmp_path_factory.mktemp("site"))


@pytest.fixture
def log(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes of a test, which all have the simulated NPU, write what they do to it."""
    path = tmp_path / "npu.log"
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.setenv("SIMULATED_NPU_LOG", str(path))
    return path
