"""The NPU's row of device.py, run on a simulated one: no Ascend card had a part in any of this.

Simulated are torch_npu (`torch.npu`, made of torch's spare device type: CPU memory and kernels
behind the device `npu`, which refuses a mix of both) and HCCL (gloo behind a backend that refuses
tensors of the CPU, as the real one does). True are the device strings, what is moved where, which
collective takes which backend, the cards a worker sees and takes, autocast and loss scaling being
asked for, and Ray, which is only told that its node has two NPUs. Not shown is how a card rounds,
what its kernels lack, how HCCL waits, what memory it has, and CANN itself.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from raycnn.analysis.evaluate import evaluate_run
from raycnn.config.schema import ComponentConfig, JobSpec
from raycnn.runs.directory import Run
from tests.support.jobs import ROOT
from tests.support.npu import WITHOUT_CANN
from tests.support.processes import ended, raycnn, workers
from tests.support.runs import distance, same, train, weights
from tests.support.transforms import EVERY

MakeJob = Callable[..., JobSpec]


def file_of(job: JobSpec) -> Path:
    return Run.create(job).folder / "job.yaml"


def test_a_job_trains_on_an_npu_as_on_a_cpu_and_its_checkpoints_move_between_them(
    job: MakeJob, tmp_path: Path, log: Path
) -> None:
    augmented = partial(job, data__transforms=["rand_augment", {"name": "resize", "size": 12}])
    done = raycnn("train", file_of(augmented()), "workers.device=npu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    on_cpu, run = train(augmented()), Run(tmp_path / "runs" / "tiny" / "2")
    assert log.read_text() == "loaded\nnpu:0 of None\n"
    assert distance(weights(on_cpu), weights(run)) < 1e-5
    assert (
        json.loads((run.folder / "environment.json").read_text())["devices"]
        == ["simulated NPU"] * 2
    )
    assert all(float(row["memory_mib"]) > 0 for row in run.rows())
    assert {row["memory_mib"] for row in on_cpu.rows()} == {""}
    assert evaluate_run(run, "test", "best", "cpu", None)["test"]["acc1"] == pytest.approx(
        (run.result() or {})["test"]["acc1"]
    )
    longer = augmented(train__epochs=4)
    train(longer, run)
    train(longer, on_cpu)
    assert distance(weights(on_cpu), weights(run)) < 1e-5


def test_images_that_stay_on_an_npu_train_as_those_copied_there_batch_by_batch(
    job: MakeJob, tmp_path: Path, log: Path
) -> None:
    runs = []
    for free in (2**30, 0):
        spec = file_of(job(train__balanced=True))
        done = raycnn(
            "train", spec, "workers.device=npu", cwd=tmp_path, SIMULATED_NPU_FREE=str(free)
        )
        assert done.returncode == 0, done.stderr
        runs.append(Run(tmp_path / "runs" / "tiny" / str(2 * len(runs) + 2)))
    logs = ["".join(p.read_text() for p in run.folder.glob("logs/*.log")) for run in runs]
    assert [text.count("stay on npu:0") for text in logs] == [3, 0]  # train, val and test
    assert same(weights(runs[0]), weights(runs[1]))


def waits(job: JobSpec, cwd: Path) -> dict[str, int]:
    """How often each operation makes the host wait for the device, in a whole training."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.npu.waits", file_of(job)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_twice_the_steps_wait_for_the_device_no_more_often(
    job: MakeJob, tmp_path: Path, log: Path
) -> None:
    """The host waits a number of times for each epoch, and never within a step."""
    choices = [*EVERY, ComponentConfig(name="resize", size=12)]  # what the network can take
    choices.sort(key=lambda choice: choice.name in ("cutmix", "mixup"))  # these come last
    every_part = partial(
        job, data__transforms=[choice.model_dump() for choice in choices], train__epochs=1,
        train__precision="bf16", train__ema=0.9, train__clip_norm=1.0, train__label_smoothing=0.1, train__class_weights="balanced",
        optimizer={"name": "adamw", "lr": 1e-3},
    )  # fmt: skip
    few, many = (waits(every_part(train__batch_size=size), tmp_path) for size in (32, 16))
    assert few["aten._local_scalar_dense.default"] > 0, "the mode sees what waits"
    assert many == few


@pytest.mark.slow
def test_two_workers_share_a_batch_over_hccl_at_half_precision(
    job: MakeJob, tmp_path: Path, log: Path
) -> None:
    """Their gradients meet over HCCL, their counts over gloo; autocast and loss scale are on."""
    spec = job(workers__count=2, workers__device="npu", train__precision="fp16", train__epochs=1)
    codes, said = ended(workers(2, file_of(spec), cwd=tmp_path))
    assert codes == {0}, said
    assert {"npu:0 of None", "npu:1 of None"} < set(log.read_text().splitlines())
    one, two = train(job(train__epochs=1)), Run(tmp_path / "runs" / "tiny" / "2")
    assert distance(weights(one), weights(two)) < 2e-2
    assert (two.result() or {})["test"]["count"] == 357


@pytest.mark.slow
def test_difference_of_cpu_and_npu_is_shown_step_by_step(
    job: MakeJob, tmp_path: Path, log: Path
) -> None:
    """The CPU computes for both, so nothing but the batch's layout could tell them apart."""
    done = raycnn(
        "compare-devices", file_of(job()), "--devices", "cpu,npu", "--steps", "8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[str(step), "npu"] for step in range(1, 9)]
    assert all(float(row[3]) < 1e-5 and float(row[6]) < 1e-5 for row in rows)


@pytest.fixture
def head(log: Path) -> Iterator[str]:
    """The address of a Ray whose node is said to have two NPUs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
         "--num-cpus=2", '--resources={"NPU": 2}', "--include-dashboard=false"],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=60)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_on_ray_each_take_an_npu_of_their_node(
    job: MakeJob, tmp_path: Path, log: Path, site: Path, head: str
) -> None:
    """Ray by itself would show each worker one card alone, and meet over gloo."""
    deadline = time.monotonic() + 240
    while (seen := raycnn("doctor", "--address", head, cwd=tmp_path)).returncode:
        assert time.monotonic() < deadline, seen.stderr
    assert "2 CPU, 0 GPU, 2 NPU" in seen.stdout and not log.exists()

    spec = job(workers__count=2, workers__cpus=1, workers__address=head, workers__device="npu")
    done = raycnn("train", file_of(spec), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    taken = set(log.read_text().splitlines())
    assert taken == {"loaded", "npu:0 of 0,1", "npu:1 of 0,1"}
    one, two = train(job()), Run(tmp_path / "runs" / "tiny" / "2")
    assert distance(weights(one), weights(two)) < 1e-5
    assert all(float(row["memory_mib"]) > 0 for row in two.rows())

    log.unlink()
    on_cpu = file_of(spec.change({"workers.device": "cpu", "train.epochs": 1}))
    done = raycnn("train", on_cpu, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), "a job that runs on CPUs has no need of it"

    package = site / "torch_npu" / "__init__.py"
    whole = package.read_text()
    package.write_text(WITHOUT_CANN)
    refused = raycnn("train", file_of(spec), cwd=tmp_path)
    package.write_text(whole)
    assert refused.returncode == 3 and "libhccl.so" in refused.stderr
    assert "Traceback" not in refused.stderr
