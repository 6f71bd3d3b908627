"""What `raycnn doctor` finds, of this machine and of made ones."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from raycnn.analysis.doctor import cann, check_environment, version_conflicts
from tests.support.processes import Call

FITTING = {"torch": "2.14.0+cu130", "torchvision": "0.29.2", "torch_npu": None, "ray": "2.60.0"}


@pytest.fixture
def call(call: Call) -> Call:
    return partial(call, "doctor")


def test_what_is_here_is_shown_and_fits_together(call: Call, tmp_path: Path) -> None:
    code, out, _ = call()
    assert code == 0
    for word in (f"torch           {torch.__version__}", "gloo", "cpus", str(tmp_path / "runs")):
        assert word in out
    code, out, _ = call("--json")
    found = json.loads(out)
    assert code == 0 and found["versions"]["torch"] == torch.__version__
    assert {"cuda", "npu", "xpu", "mps"} == found["devices"].keys() and found["cpus"] >= 1
    assert found["problems"] == [], "the versions that uv.lock names go together"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--device", "npu"), 3, "torch_npu is not installed"),
        (("--device", "gpu"), 2, "unknown device 'gpu'"),
        (("--address", "127.0.0.1:1"), 5, "no Ray cluster at 127.0.0.1:1"),
        (("--address", "localhost"), 2, "'localhost' is not the address of a Ray head: host:port"),
        (("--address", "localhost:²"), 2, "'localhost:²' is not the address of a Ray head"),
        (("--address", "localhost:99999"), 2, "'localhost:99999' is not the address of a Ray head"),
    ],
)
def test_what_is_asked_for_and_cannot_work_has_its_exit_code(
    call: Call, words: tuple[str, ...], code: int, said: str
) -> None:
    ended, _, err = call(*words)
    assert ended == code and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"torchvision": "0.28.0"}, "torchvision 0.28.0 does not fit torch 2.14.0+cu130: install torchvision 0.29"),
        ({"torch": "2.9.1", "torchvision": "0.29.2"}, "torchvision 0.29.2 does not fit torch 2.9.1: install torchvision 0.24"),
        ({"torch_npu": "2.9.0.post1"}, "torch_npu 2.9.0.post1 does not fit torch 2.14.0+cu130: install torch_npu 2.14"),
        ({"ray": "2.40.0"}, "ray 2.40.0 does not fit raycnn: install ray"),
        ({}, ""),
    ],
)  # fmt: skip
def test_versions_that_do_not_go_together_are_named_with_the_one_that_would(
    versions: dict[str, str], problem: str
) -> None:
    found = version_conflicts(FITTING | versions)
    assert len(found) == bool(problem) and (not problem or found[0].startswith(problem))


def test_a_driver_whose_devices_torch_does_not_see_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("raycnn.runtime.device.npu_driver", lambda: True)
    assert any(
        "torch_npu is not installed" in problem for problem in check_environment(tmp_path).problems
    )


def test_the_version_of_cann_is_read_from_the_toolkit_that_was_sourced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files as the toolkit's installer leaves them."""
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert cann() is None
    (tmp_path / "aarch64-linux").mkdir()
    about = tmp_path / "aarch64-linux" / "ascend_toolkit_install.info"
    about.write_text("package_name=Ascend-cann-toolkit\nversion=8.2.RC1\narch=aarch64\n")
    assert cann() == "8.2.RC1"
