"""A search on real Ray: what it finds, and what killing it leaves. Each start takes Ray some 20 s."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from raycnn.config.load import load_job
from raycnn.config.search import TuneSpec
from raycnn.errors import ClusterError, StorageUnavailable
from raycnn.launch.ray import tune
from raycnn.launch.ray.resources import Node
from raycnn.launch.ray.tune import slots
from raycnn.search.folder import Search
from raycnn.search.queue import TrialQueue
from tests.support.processes import raycnn, wait_for
from tests.support.runs import numbers, train
from tests.support.searches import CPU, Read, run_all

TEXT = """\
name: two
data: {name: digits, limit: 400, transforms: [{name: resize, size: 12}]}
optimizer: {name: sgd, lr: 1e-5, momentum: 0.9}
train: {epochs: 6, batch_size: 32}
architectures:
  - {name: relu, model: {name: lenet, activation: relu}}
  - {name: sigmoid, model: lenet, optimizer: {name: adam, lr: 1e-5}}
tune:
  scheduler: asha
  space:
    optimizer.lr: {grid: [0.05, 1e-5, 1e30]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "two.tune.yaml").write_text(TEXT)
    return raycnn("tune", "two.tune.yaml", cwd=folder)


@pytest.fixture(scope="module")
def found(done: subprocess.CompletedProcess[str], folder: Path) -> Search:
    assert done.returncode == 0, done.stderr
    return Search.find("two", str(folder / "runs"))


def board(search: Search) -> dict[str, dict[str, Any]]:
    said = json.loads((search.folder / "leaderboard.json").read_text())
    return {entry["trial"]: entry for entry in said["trials"]}


def processes_of(search: Search) -> dict[str, list[int]]:
    """Of each trial, the processes that trained it, in order."""
    return {
        one.id: [
            int(pid)
            for log in (one.run.folder / "logs").glob("rank-0.log")
            for pid in re.findall(r"process (\d+)", log.read_text())
        ]
        for one in search.trials()
    }


@pytest.mark.ray
def test_a_search_beats_a_bad_default_for_every_architecture(found: Search) -> None:
    entries = board(found)
    for name in ("relu", "sigmoid"):
        won = load_job(found.best_job_path(name)).optimizer.options["lr"]
        assert won == 0.05 and entries[f"{name}-000"]["state"] == "done"
    assert entries["relu-000"]["metric"] > entries["relu-001"]["metric"] + 0.3


@pytest.mark.ray
def test_asha_stops_bad_trials_early(found: Search) -> None:
    bad = board(found)["relu-001"]
    assert (bad["state"], bad["epochs"], bad["of_epochs"]) == ("stopped", 2, 6)


@pytest.mark.ray
def test_a_trial_that_fails_stops_no_other(found: Search) -> None:
    entries = board(found)
    assert len(entries) == 6
    assert entries["relu-002"]["state"] == "failed"
    assert "the loss is not finite" in entries["relu-002"]["reason"]


@pytest.mark.ray
def test_the_best_job_comes_to_the_metric_of_its_trial_without_ray(found: Search) -> None:
    run = train(load_job(found.best_job_path("relu"), [f"storage.path={found.folder}"]))
    assert numbers(run) == numbers(found.trial("relu-000").run)


@pytest.mark.ray
def test_a_process_trains_one_trial_after_another_without_delay(found: Search) -> None:
    of_trial = processes_of(found)
    assert all(len(pids) == 1 for pids in of_trial.values())
    assert len({pids[0] for pids in of_trial.values()}) <= len(os.sched_getaffinity(0))


@pytest.mark.ray
def test_what_a_person_sees_is_a_line_for_each_trial_and_the_leaderboard(
    found: Search, done: subprocess.CompletedProcess[str]
) -> None:
    lines = done.stdout.splitlines()
    lines = lines[lines.index(f"search {found.folder}") + 1 :]
    assert [line.split()[0] for line in lines[:6]] == [f"{n}/6" for n in range(1, 7)]
    best = [line.split()[1] for line in lines[8:14]]
    assert best == [entry["trial"] for entry in reversed(board(found).values())]
    assert all(len(line) <= 80 for line in lines[:14])
    assert "--retrain" in lines[-1] and f"best-{best[-1].partition('-')[0]}.yaml" in lines[-2]
    for name in ("lr", "curves", "pareto"):
        assert (found.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
def test_a_finished_search_is_not_searched_again(found: Search, folder: Path) -> None:
    before = processes_of(found)
    again = raycnn("tune", "--resume", "two", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert processes_of(found) == before


POOLS = """\
name: pools
data: {name: digits, limit: 200, val: 0.3, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 2, batch_size: 32}
tune:
  trials: 4
  scheduler: {name: pbt, interval: 1, quantile: 0.5}
  space: {optimizer.lr: {loguniform: [3e-3, 0.3]}}
  pools: [{device: npu}, {device: cpu}]
"""
STAND_IN = """\
import types

import torch

from raycnn.runtime.device import DEVICE_KINDS, DeviceKind

card = types.ModuleType("torch.npu")
card.device_count = lambda: 1
card.get_device_name = lambda index: "a CPU"
card._is_in_bad_fork = lambda: False
card.manual_seed_all = lambda seed: None
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", card)
select = DeviceKind.select
DeviceKind.select = lambda kind, rank, threads=None: select(DEVICE_KINDS["cpu"], rank, threads)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_population_is_spread_over_cpu_and_npu_and_comes_to_what_it_does_in_one_process(
    folder: Path,
) -> None:
    """The NPU is simulated: Ray is told of one, and what is trained on it runs CPU kernels.

    A stand-in for torch_npu says that there is a card, and gives out the CPU in its place.
    """
    package = folder / "npu" / "torch_npu"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    about = folder / "npu" / f"torch_npu-{torch.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Name: torch_npu\nVersion: {torch.__version__}\n")
    (folder / "pools.tune.yaml").write_text(POOLS)
    done = subprocess.run(
        [sys.executable, "-c", "import torch_npu; from raycnn.cli import main; main()"]
        + ["tune", "pools.tune.yaml"],
        cwd=folder, capture_output=True, text=True,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder / "npu"), os.environ.get("PYTHONPATH", "")]),
            "RAY_OVERRIDE_RESOURCES": '{"NPU": 1}',
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Search.find("pools", str(folder / "runs"))
    entries = board(found).values()
    assert len(entries) == 4 and {entry["device"] for entry in entries} == {"cpu", "npu"}
    pids = [pid for pids in processes_of(found).values() for pid in pids]
    assert len(pids) == 8 and len(set(pids)) == 2, "kept from generation to generation"

    alone = found.spec.model_copy(update={"name": "alone"})
    tree = alone.tree()
    tree["tune"]["pools"] = [{"device": "cpu"}]
    alone = run_all(Search.create(TuneSpec.model_validate(tree)))
    for one, other in zip(found.trials(), alone.trials(), strict=True):
        assert numbers(one.run) == numbers(other.run)
        assert one.run.job().stages == other.run.job().stages
    assert [entry["reason"] for entry in entries].count("") == 2, "two are copies of the others"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command line; whatever is started is ended, also when a test fails."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "raycnn", *map(str, words)],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


LONG = """\
name: long
data: {name: digits, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 12, batch_size: 32}
tune: {space: {optimizer.lr: {grid: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]}}}
"""


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_resumed_no_finished_trial_is_trained_again(
    folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A worker is killed, and Ray starts another; then the driver, with all of its Ray."""
    (folder / "long.tune.yaml").write_text(LONG)
    driver = start("tune", "long.tune.yaml")

    search = Search(folder / "runs" / "long" / "1")
    wait_for((search.folder / "search.yaml").exists, driver)

    def ended() -> list[str]:
        return [one.id for one in search.trials() if one.ended]

    def under_way() -> list[str]:
        return [t.id for t in search.trials() if not t.ended and t.rows()]

    wait_for(lambda: bool(ended() and under_way()), driver)
    victim = under_way()[0]
    os.kill(processes_of(search)[victim][0], signal.SIGKILL)
    wait_for(lambda: len(processes_of(search)[victim]) == 2 or victim in ended(), driver)
    wait_for(lambda: len(ended()) >= 2 and bool(under_way()), driver)
    driver.kill()
    driver.communicate()
    finished, before = set(ended()), processes_of(search)

    resumed = raycnn("tune", "--resume", search.folder, cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert {entry["state"] for entry in board(search).values()} == {"done"}
    after = processes_of(search)
    assert len(after) == 6
    assert {name for name in finished if after[name] != before[name]} == set()
    (architecture,) = search.spec.architectures
    job = architecture.job_of("long", board(search)[victim]["changes"], search.spec.tune.pools[0])
    alone = train(job.change({"workers.cpus": 1, "storage.path": str(folder)}))
    assert numbers(alone) == numbers(search.trial(victim).run)


@pytest.mark.ray
@pytest.mark.slow
def test_asked_to_stop_a_search_saves_and_says_how_to_go_on(
    folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    (folder / "long.tune.yaml").write_text(LONG.replace("long", "asked"))
    driver = start("tune", "long.tune.yaml")
    search = Search(folder / "runs" / "asked" / "1")
    ready = search.folder / "search.yaml"
    wait_for(lambda: ready.exists() and any(t.rows() for t in search.trials()), driver)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert f"raycnn tune --resume {search.folder}" in said and "Traceback" not in said
    assert {entry["state"] for entry in board(search).values()} <= {"unfinished", "done"}


@pytest.mark.ray
@pytest.mark.slow
def test_trials_of_two_workers_each_start_a_trainer_and_are_judged_alike(folder: Path) -> None:
    lines = TEXT.replace("name: two", "name: pairs").splitlines(keepends=True)
    (folder / "pairs.tune.yaml").write_text(
        "".join(line for line in lines if "sigmoid" not in line)
    )
    done = raycnn("tune", "pairs.tune.yaml", "tune.pools=[{device: cpu, workers: 2}]", cwd=folder)
    assert done.returncode == 0, done.stderr
    search = Search.find("pairs", str(folder / "runs"))
    entries = board(search)
    assert [entries[f"relu-{n:03d}"]["state"] for n in range(3)] == ["done", "stopped", "failed"]
    assert load_job(search.best_job_path("relu")).workers.count == 2


@pytest.mark.parametrize(
    ("pools", "nodes", "devices"),
    [
        ("[{device: cpu}]", [{"CPU": 2}], ["cpu", "cpu"]),
        ("[{device: cpu, cpus: 2}]", [{"CPU": 3}], ["cpu"]),
        ("[{device: cuda}, {device: cpu}]", [{"CPU": 3, "GPU": 1}], ["cuda", "cpu", "cpu"]),
        ("[{device: cuda, cpus: 2}, {device: npu}]", [{"CPU": 3, "GPU": 2}, {"CPU": 2, "NPU": 2}], ["cuda", "npu", "npu"]),
        ("[{device: cpu, workers: 2}]", [{"CPU": 3}, {"CPU": 2}], ["cpu", "cpu"]),
        ("[{device: cpu, workers: 3}, {device: cpu}]", [{"CPU": 5}], ["cpu", "cpu", "cpu"]),
        ("[{device: auto}]", [{"CPU": 8, "NPU": 2}], ["npu", "npu"]),
    ],
)  # fmt: skip
def test_trials_are_spread_over_what_there_is_and_never_more(
    read: Read,  # noqa: F811
    pools: str,
    nodes: list[dict[str, float]],
    devices: list[str],
) -> None:
    """Simulated resources: nothing is trained here."""
    search = read(f"tune: {{pools: {pools}}}\n")
    there = [Node(f"node {i}", node) for i, node in enumerate(nodes)]
    assert [slot.pool.device for slot in slots(search, there)] == devices
    few = read(f"tune: {{pools: {pools}, concurrency: 1}}\n")
    assert len(slots(few, there)) == 1


def test_a_pool_that_fits_nowhere_is_refused(read: Read) -> None:  # noqa: F811
    search = read("tune: {pools: [{device: cpu}, {device: npu, cpus: 3}]}\n")
    with pytest.raises(ClusterError, match="3 CPU and 1 NPU"):
        slots(search, [Node("here", {"CPU": 2, "NPU": 1})])


def test_a_trial_whose_process_is_lost_again_and_again_fails_and_the_next_one_follows(
    read: Read,  # noqa: F811
) -> None:
    """The losses are told: nothing is trained here."""
    search = Search.create(read("tune: {space: {optimizer.lr: {grid: [0.05, 0.1]}}}\n"))
    executor = tune._Executor.__new__(tune._Executor)
    executor.queue, executor.retries = TrialQueue(search), Counter()
    for _ in range(3):  # failure.retries is 2
        lost = executor.queue.take(CPU)
        assert lost.id == "lenet-000" and not lost.ended
        executor._put_back(lost)
    assert lost.info["state"] == "failed" and "failure.retries" in lost.info["reason"]
    assert executor.queue.take(CPU).id == "lenet-001"


def test_a_full_disk_in_an_actor_ends_no_trial_and_keeps_its_exit_code(
    read: Read,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The actor is called here, without Ray, and the disk is said to be full."""
    search = Search.create(read())
    one = TrialQueue(search).take(CPU)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tune, "open_shared_trial", lambda *_: nullcontext((search, one)))
    monkeypatch.setattr(tune, "_fit", full)
    slot, folder = tune.Slot(CPU, {"CPU": 1}), tune.share_folder(search.folder, serve=False)
    error = tune._Trainer().train(folder, one.id, 60, slot, None, None, {})
    assert isinstance(error, StorageUnavailable) and error.exit_code == 3
    assert "No space left" in str(error) and not one.ended
