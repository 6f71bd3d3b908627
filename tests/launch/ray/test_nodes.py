"""A cluster of several nodes, each with its own network, processes and disk; one of them dies.

The nodes are namespaces of Linux (see benchmarks/namespaces.py): to Ray, to gloo and to a job they are machines. Their names lead to loopback, as Debian's installer leaves them.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import namespaces
from benchmarks.cluster import NODES, RAYLET, WHY_NOT, Cluster, running
from benchmarks.namespaces import Machine
from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.search.folder import Search
from raycnn.training.callbacks import RestartPlanned, Resumed, StoppedOnRequest, WorkersRestarted
from tests.support.processes import wait_for
from tests.support.ray_runs import assert_unbroken, pids
from tests.support.runs import happened

pytestmark = [
    pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT)),
]  # fmt: skip

SEARCH = """\
name: lost
data: {name: digits, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 60, batch_size: 32}
tune: {space: {optimizer.lr: {grid: [0.01, 0.02, 0.03, 0.04]}}}
"""

MakeJob = Callable[..., JobSpec]


@pytest.fixture(scope="module")
def started(cache: Path) -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.fill()
    return started


def some_seconds(job: MakeJob) -> JobSpec:
    return job(
        data__limit=None, train__epochs=12, storage__every_steps=7, train__batch_size=64,
        workers__count=2, workers__cpus=1,
    )  # fmt: skip


def lose_a_node(run: Run, cluster: Cluster, lose: Callable[[Machine], None]) -> None:
    """Train on two nodes of the three, and lose one of these in mid-epoch."""
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    first, second = cluster.at_work()
    lose(second)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert happened(run, WorkersRestarted), run.events()


def test_a_job_outlives_a_node_though_nothing_is_shared(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Workers see neither the run's folder nor each other's disk: all of it comes through Ray."""
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    lose_a_node(run, cluster, Machine.kill)

    for node in cluster.nodes:
        if node.is_up:
            left = node.run(f"ls '{run.folder.parent.parent}' $RAYCNN_CACHE/copies").split()
            assert not [name for name in left if not name.endswith(":")]
    logs = run.folder / "logs"
    assert "resuming from" in (logs / "rank-0.log").read_text()
    assert (logs / "rank-1.log").exists() and list((logs / "tensorboard").iterdir())
    assert_unbroken(run, tmp_path)


def kill_raylet(node: Machine) -> None:
    """Ray's own process alone: its others find that out by themselves."""
    (raylet,) = node.runs(RAYLET)
    os.kill(raylet, signal.SIGKILL)


def test_a_job_outlives_a_raylet_with_a_shared_folder(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    run = Run.create(some_seconds(job))
    lose_a_node(run, cluster, kill_raylet)
    assert_unbroken(run, tmp_path)


def test_a_job_leaves_a_node_before_it_is_taken_away(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Ray's notice of a preemption, as its autoscaler gives it: no step is lost, and no retry."""
    spec = some_seconds(job).change({"failure.retries": 0, "train.epochs": 60})
    run = Run.create(spec)  # to give the notice takes some seconds, too
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    going = cluster.at_work()[1]
    cluster.drain(going)
    wait_for(lambda: len(pids(run, 1)) == 2, driver)
    assert going not in cluster.at_work()
    going.kill()
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    saved, resumed = happened(run, StoppedOnRequest), happened(run, Resumed)
    assert [(e.epoch, e.step) for e in saved] == [(e.epoch, e.step) for e in resumed]
    assert happened(run, RestartPlanned)
    assert not happened(run, WorkersRestarted)
    assert_unbroken(run, tmp_path)


def trained(search: Search) -> int:
    """How many of its trials have done an epoch."""
    there = (search.folder / "search.yaml").is_file()
    return sum(bool(one.rows()) for one in search.trials()) if there else 0


def test_a_search_outlives_a_node(cluster: Cluster, tmp_path: Path) -> None:
    """What was trained there goes on elsewhere, from its checkpoint; no other trial is touched.

    The nodes do not see the folder of the search: all of it comes through Ray.
    """
    (tmp_path / "runs").mkdir()
    cluster.hide(tmp_path / "runs")
    spec = tmp_path / "lost.tune.yaml"
    spec.write_text(SEARCH)
    driver = cluster.start("tune", spec, f"storage.path={tmp_path / 'runs'}")
    search = Search(tmp_path / "runs" / "lost" / "1")

    wait_for(lambda: trained(search) == NODES, driver)
    cluster.nodes[0].kill()
    _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    again = [one for one in search.trials() if len(pids(one.run, 0)) == 2]
    assert {one.info["state"] for one in search.trials()} == {"done"}
    assert len(search.trials()) == 4 and len(again) == 1
    assert "resuming from" in (again[0].run.folder / "logs" / "rank-0.log").read_text()


def test_a_search_without_nodes_says_what_it_waits_for_and_ends_resumable(
    cluster: Cluster, tmp_path: Path
) -> None:
    spec = tmp_path / "none.tune.yaml"
    spec.write_text(SEARCH.replace("name: lost", "name: none") + "workers: {timeout_s: 20}\n")
    driver = cluster.start("tune", spec, f"storage.path={tmp_path / 'runs'}")
    search = Search(tmp_path / "runs" / "none" / "1")
    wait_for(lambda: trained(search) == NODES, driver)
    for node in cluster.nodes:
        node.kill()
    out, said = driver.communicate(timeout=300)
    assert driver.returncode == 5, said
    assert "no node had room for a trial" in said
    assert f"raycnn tune --resume {search.folder}" in said and "Traceback" not in said
    assert not [one.id for one in search.trials() if one.info.get("state") == "failed"]


def test_a_killed_driver_finds_in_its_folder_what_the_nodes_did(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Also a wish to stop reaches the nodes, and what they save on it the folder."""
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    _kill(driver)

    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 5, driver)
    run.request_stop()
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130 and f"raycnn resume {run.folder}" in said

    driver = cluster.driver(run)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert_unbroken(run, tmp_path)


def test_a_full_disk_of_the_driver_ends_the_job_and_keeps_the_last_checkpoint(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    run = Run.create(some_seconds(job))
    cluster.hide(run.folder.parent.parent)
    storage = run.checkpoints
    cluster.head.run(f"mount -t tmpfs -o size=2m none '{storage}'")
    driver = cluster.driver(run)
    wait_for(lambda: len(run.rows()) >= 2, driver)
    cluster.head.run(f"cat /dev/zero > '{storage}/others' 2> /dev/null || true")
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 3, said
    assert "cannot save a checkpoint" in said and "No space left" in said
    assert f"raycnn resume {run.folder}" in said and "Traceback" not in said
    assert cluster.head.run(f"ls '{storage}'/0*/state.json '{storage}/index.json'")


def _kill(driver: "subprocess.Popen[str]") -> None:
    """What runs inside; what was started only waits for it."""
    inside = namespaces.child_of(driver.pid)
    assert inside
    os.kill(inside, signal.SIGKILL)
    driver.communicate()
