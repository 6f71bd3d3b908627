"""A job whose number of workers follows the nodes that there are."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import namespaces
from benchmarks.cluster import WHY_NOT, Cluster, running
from raycnn.config.schema import JobSpec
from raycnn.errors import ClusterError, SpecError
from raycnn.launch.launcher import check_world, launcher_of
from raycnn.launch.ray import resource_watch
from raycnn.launch.ray.resource_watch import ResourceWatch
from raycnn.launch.ray.resources import Node, resources_per_worker
from raycnn.runs.directory import Run
from raycnn.runtime.device import DEVICE_KINDS
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import (
    Event,
    RestartPlanned,
    Resumed,
    StoppedOnRequest,
    WaitingForResources,
)
from tests.support.processes import ended, wait_for, workers
from tests.support.ray_runs import pids
from tests.support.runs import distance, happened, weights

MakeJob = Callable[..., JobSpec]


class Nodes:
    """A cluster as Ray tells of it: nodes with one CPU each, some of them taken."""

    def __init__(self, count: int):
        self.there, self.used = count, 0

    def alive(self) -> list[Node]:
        return [Node(f"10.0.0.{n}", {"CPU": 1.0}) for n in range(self.there)]

    def free(self) -> dict[str, float]:
        return {"CPU": float(self.there - self.used)}


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    nodes = Nodes(3)
    monkeypatch.setattr(resource_watch, "alive_nodes", nodes.alive)
    monkeypatch.setattr(resource_watch, "free_resources", nodes.free)
    monkeypatch.setattr(resource_watch, "SETTLE_S", 0)
    monkeypatch.setattr(resource_watch, "GROW_S", 0.2)
    return nodes


def watch_of(job: JobSpec, timeout_s: float = 2) -> ResourceWatch:
    workers = job.workers.model_copy(update={"timeout_s": timeout_s})
    return ResourceWatch(workers, {"CPU": 1.0})


@pytest.mark.parametrize("count", [2, [2, 3]])
def test_too_little_room_is_said_and_waited_for_no_longer_than_allowed(
    job: MakeJob, three: Nodes, count: Any
) -> None:
    three.used, told = 2, list[Event]()
    watch = watch_of(job(workers__count=count), 1)
    with pytest.raises(ClusterError, match="1 of at least 2 workers .* 1 s"):
        watch.wait_for_resources(told.append, lambda: False)
    assert [type(event) for event in told] == [WaitingForResources]
    watch = watch_of(job(workers__count=count), 60)
    threading.Timer(0.5, lambda: setattr(three, "used", 0)).start()
    watch.wait_for_resources(told.append, lambda: False)
    three.used = 3
    watch.wait_for_resources(told.append, lambda: True)  # asked to stop


def test_workers_that_lost_a_node_wait_for_one_no_longer_than_allowed(
    job: MakeJob, three: Nodes
) -> None:
    """While they start there is nothing free: what counts is what the nodes have at all."""
    watch = watch_of(job(workers__count=2), 0.3)
    three.used = 3
    assert watch.poll(0) is None and not watch.error
    three.there = 1
    assert isinstance(watch.poll(0), WaitingForResources)
    assert watch.poll(0) is None, "it is said once"
    time.sleep(0.4)
    watch.poll(0)
    assert "room for 1 of at least 2 workers" in str(watch.error)


def test_workers_are_asked_to_make_way_once_room_for_more_has_stayed(
    job: MakeJob, three: Nodes
) -> None:
    watch = watch_of(job(workers__count=[1, 3]))
    three.used = 2
    assert watch.poll(2) is None, "not at once"
    three.used = 3
    assert watch.poll(2) is None
    three.used = 2
    assert watch.poll(2) is None, "it was taken meanwhile"
    time.sleep(0.3)
    planned = watch.poll(2)
    assert isinstance(planned, RestartPlanned) and "3 workers" in planned.reason
    for _ in range(2):
        assert watch.poll(2) is None
        time.sleep(0.3)
    assert watch.poll(2), "later again, but later the second time"
    assert watch.poll(3) is None


def test_each_worker_of_a_range_gets_the_most_that_lets_as_many_in_as_possible(
    job: MakeJob,
) -> None:
    nodes = [Node("a", {"CPU": 8}), Node("b", {"CPU": 4})]
    for count, cpus in {(1, 1): 8, (1, 3): 4, (1, 12): 1, (2, 99): 1}.items():
        asked = job(workers__count=[*count], train__batch_size=99).workers
        assert resources_per_worker(asked, DEVICE_KINDS["cpu"], nodes) == {"CPU": cpus}
    with pytest.raises(ClusterError, match="13 to 20 workers of 1 CPU"):
        resources_per_worker(job(workers__count=[13, 20]).workers, DEVICE_KINDS["cpu"], nodes)


def test_without_ray_a_range_is_whatever_is_started_in_it(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(workers__count=[2, 3]).workers
    assert launcher_of(asked) == "ray"
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for started in "23":
        monkeypatch.setenv("WORLD_SIZE", started)
        assert launcher_of(asked) == "local"
        check_world(asked)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SpecError, match="2 to 3 workers .*4"):
        check_world(asked)


@pytest.fixture(scope="module")
def cluster(cache: Path) -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))
def test_a_run_shrinks_and_grows_with_its_nodes_and_comes_to_the_same(
    job: MakeJob, cluster: Cluster, tmp_path: Path
) -> None:
    """Two nodes; one is killed, and later there is another. Then it is ended by two processes.

    The rate is small, so that no difference in the order of float sums grows.
    """
    run = Run.create(
        job(
            data__limit=None, train__epochs=100_000, train__batch_size=64, schedule="constant",
            optimizer={"name": "sgd", "lr": 1e-4}, storage__every_steps=7,
            workers__count=[1, 2], workers__cpus=1,
        )
    )  # fmt: skip
    cluster.fill(2)
    driver = cluster.driver(run)
    for event, change in {
        "now 1 worker, of 1 to 2": lambda: cluster.at_work()[1].kill(),
        "now 2 workers, of 1 to 2": lambda: cluster.fill(2),
    }.items():
        epochs = len(run.rows()) + 2
        wait_for(lambda epochs=epochs: len(run.rows()) >= epochs, driver)
        change()
        wait_for(lambda event=event: event in [one.message for one in run.events()], driver)
    wait_for(lambda: len(pids(run, 1)) == 2, driver)
    epochs = len(run.rows()) + 2
    wait_for(lambda: len(run.rows()) >= epochs, driver)
    inside = namespaces.child_of(driver.pid)
    assert inside
    os.kill(inside, signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors
    assert "Traceback" not in errors

    *grown, _ = happened(run, StoppedOnRequest)
    saved = [(one.epoch, one.step) for one in grown]
    resumed = [(one.epoch, one.step) for one in happened(run, Resumed)[1:]]
    assert saved and saved == resumed, "to grow costs no step"
    assert happened(run, RestartPlanned)
    state = checkpoint_folder.read_state(run.weights("last"))
    assert state["seen"]["count"] == min(64 * state["step"], state["about"]["images"]["train"])

    last = f"train.epochs={len(run.rows()) + 1}"
    unbroken = Run.create(run.job())
    for one in (run, unbroken):
        here = workers(2, one.folder, last, "workers.address=null", cwd=tmp_path, verb="resume")
        assert ended(here)[0] == {0}
    assert distance(weights(unbroken), weights(run)) < 5e-5
    rows, others = run.rows(), unbroken.rows()
    same = ("epoch", "step", "lr")
    for row, other in zip(rows, others, strict=True):
        assert [row[key] for key in same] == [other[key] for key in same]
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), rel=1e-5)
