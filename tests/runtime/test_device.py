"""Devices that are asked for and lack something; an NPU that is there is in tests/npu."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raycnn.config.schema import JobSpec, Workers
from raycnn.errors import EnvironmentUnavailable, SpecError
from raycnn.launch.ray import connection
from raycnn.launch.ray.resources import resources_per_worker
from raycnn.runs.directory import Run
from raycnn.runs.environment import environment
from raycnn.runtime import device
from tests.support.npu import WITHOUT_CANN, installed
from tests.support.processes import raycnn

MakeJob = Callable[..., JobSpec]
HERE = device.minor(torch.__version__)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Have a torch_npu here, and in the processes started from here."""

    def into(version: str = f"{HERE}.0", code: str = WITHOUT_CANN) -> Path:
        site = installed(tmp_path / "site", version, code)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", str(site))
        monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD")  # raycnn's doing: not a user's shell's
        monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
        return site

    return into


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    if device.DEVICE_KINDS[name].count():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(EnvironmentUnavailable, match=f"workers.device: {name}: "):
        device.find(name)


def test_a_spec_may_name_every_device_of_the_table() -> None:
    for name in ("auto", *device.DEVICE_KINDS):
        assert Workers(device=name).device == name


def test_apples_gpu_is_for_one_worker_and_never_chosen_unnamed(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is simulated: only torch's count of them is replaced."""
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    kind = device.find("mps")
    assert kind.select(3) == torch.device("mps") and kind.names() == ["Apple GPU"]
    assert device.find("auto").name != "mps"
    (node,) = connection.find_nodes(Workers())
    assert node.total["CPU"] == device.DEVICE_KINDS["cpu"].count()
    assert job(**{"workers.device": "mps"}).workers.max_count == 1
    with pytest.raises(SpecError, match="workers: .*mps"):
        job(**{"workers.device": "mps", "workers.count": 2})
    with pytest.raises(SpecError, match="cuda, npu, xpu.* mps"):
        device.check_training(job(**{"train.sync_batch_norm": True}).train, "mps")
    device.check_training(job(**{"train.precision": "bf16"}).train, "mps")


def test_intels_gpus_are_one_a_worker_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs are simulated: only torch's functions for them are replaced."""
    chosen = list[torch.device]()
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "set_device", chosen.append)
    kind = device.find("auto")
    if kind.name != "xpu":
        pytest.skip(f"this machine has {kind.name}")
    assert kind.select(3) == torch.device("xpu", 1) and chosen == [torch.device("xpu", 1)]
    (node,) = connection.find_nodes(Workers())
    assert node.total["GPU"] == 2
    assert resources_per_worker(Workers(device="xpu", cpus=1), kind, [node])["GPU"] == 1


def test_an_npu_without_torch_npu_says_what_brings_it() -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"raycnn\[npu\]"):
        device.find("npu")


def test_a_torch_npu_of_another_torch_is_refused_unloaded_with_the_pairs_that_fit(
    install: Callable[..., Path],
) -> None:
    install("2.1.0.post3", "raise SystemExit('loaded')")
    with pytest.raises(EnvironmentUnavailable) as refused:
        device.find("npu")
    said = str(refused.value)
    assert f"torch_npu 2.1.0.post3 does not fit torch {torch.__version__}" in said
    assert f"torch_npu {HERE} goes with torch {HERE}" in said and "torch 2.1 with" in said


def test_a_torch_npu_without_cann_is_refused_with_the_library_that_lacks(
    install: Callable[..., Path],
) -> None:
    install()
    with pytest.raises(EnvironmentUnavailable, match=r"libhccl.so.*set_env.sh"):
        device.find("npu")
    with pytest.raises(ModuleNotFoundError):  # as if it were not there, for what looks for it
        importlib.import_module("torch_npu")
    assert device.find("auto").name in ("cuda", "cpu")


def test_a_torch_npu_without_cann_does_not_keep_a_job_from_the_cpu(
    install: Callable[..., Path], job: MakeJob, tmp_path: Path
) -> None:
    """The package is made, and fails as the real one does: torch and Ray would fail with it."""
    install()
    alone = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True)
    assert "Failed to load the backend extension: torch_npu" in alone.stderr
    file = Run.create(job(train__epochs=1)).folder / "job.yaml"
    assert raycnn("train", file, cwd=tmp_path).returncode == 0
    on_ray = subprocess.run(
        [sys.executable, "-c", "import raycnn.launch.ray.trainer"], capture_output=True, text=True
    )
    assert on_ray.returncode == 0, on_ray.stderr
    asked = raycnn("train", file, "workers.device=npu", cwd=tmp_path)
    assert asked.returncode == 3 and "libhccl.so" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_where_nobody_asks_for_an_npu_torch_npu_is_not_loaded(
    install: Callable[..., Path],
) -> None:
    """None of this machine's drivers is an NPU's, so nothing looks further."""
    install(code="raise SystemExit('loaded')")
    device.find("auto")
    environment()
    connection.find_nodes(Workers())


@pytest.mark.ray
@pytest.mark.slow
def test_a_torch_npu_without_cann_does_not_keep_rays_workers_from_the_cpu(
    install: Callable[..., Path], job: MakeJob, tmp_path: Path
) -> None:
    install()
    file = Run.create(job(workers__count=2, workers__cpus=1)).folder / "job.yaml"
    done = raycnn("train", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "357 of 357 images" in done.stdout


def test_a_worker_decodes_with_its_share_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPUs are simulated: only their number is replaced."""
    monkeypatch.setattr(device, "_cpus", lambda: 16)
    torch_threads = torch.get_num_threads()
    cpu = device.DEVICE_KINDS["cpu"]
    cpu.select(0)
    assert device.cpu_threads() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of torchrun, which leaves each one torch thread
    assert device.cpu_threads() == 4
    cpu.select(0, 3)
    assert device.cpu_threads() == torch.get_num_threads() == 3
    cpu.select(0)
    torch.set_num_threads(torch_threads)


def test_bf16_that_a_gpu_only_emulates_is_refused_and_not_chosen(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is a fake of what torch.cuda says of a GPU before Ampere."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation

    old = SimpleNamespace(is_bf16_supported=is_bf16_supported)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: old)
    monkeypatch.setitem(
        device.DEVICE_KINDS, "cuda", replace(device.DEVICE_KINDS["cuda"], count=lambda: 1)
    )
    monkeypatch.setattr(device.DeviceKind, "names", lambda kind: ["Tesla T4"])
    with pytest.raises(SpecError, match="bf16 is not for Tesla T4"):
        device.check_training(job(train__precision="bf16").train, "cuda")
    assert not device.supports_bf16("cuda")  # precision: auto measures fp16 then
