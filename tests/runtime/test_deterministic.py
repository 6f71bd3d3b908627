"""train.deterministic, on the CPU, where Tensor.put_ is what torch has no algorithm for."""

import os
from collections.abc import Callable

import pytest
import torch

from raycnn.config.schema import JobSpec
from raycnn.errors import SpecError
from raycnn.models.lenet import LeNet
from raycnn.runs.directory import Run
from raycnn.runtime.deterministic import CUBLAS, deterministic
from tests.support.processes import Call
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]
Forward = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]

forward: Forward = LeNet.forward


def putting(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = forward(network, images)
    return logits.clone().put_(torch.tensor([0]), logits.flatten()[:1])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets here is gone after it."""
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)


@pytest.mark.parametrize("wanted", [True, False])
def test_algorithms_are_deterministic_during_a_training_and_not_after_it(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    seen = set()

    def watched(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.add((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return forward(network, images)

    monkeypatch.setattr(LeNet, "forward", watched)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", wanted)
    train(job(train__epochs=1, train__deterministic=wanted))
    assert seen == {(wanted, not wanted)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == wanted, "as it was"


def test_an_operation_without_a_deterministic_algorithm_ends_the_job(
    job: MakeJob, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeNet, "forward", putting)
    file = Run.create(job(train__epochs=1)).folder / "job.yaml"
    code, _, err = call("train", file, "train.deterministic=true")
    assert code == 2
    assert "train.deterministic: " in err and "put_" in err and "Traceback" not in err
    assert not torch.are_deterministic_algorithms_enabled()
    assert call("train", file)[0] == 0, "without the setting it trains"


def test_a_user_who_asked_torch_for_warnings_has_them_again_after_it() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_users_setting_of_cublas_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with deterministic(True):
        assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"


def test_a_process_that_used_cublas_before_is_told_what_to_set() -> None:
    with pytest.raises(SpecError, match=f"needs {CUBLAS}=:4096:8"), deterministic(True):
        raise RuntimeError(f"it uses CuBLAS: you must set {CUBLAS}=:4096:8 or {CUBLAS}=:16:8")


def test_errors_of_other_kinds_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="kind"), deterministic(True):
        raise RuntimeError("of another kind")
