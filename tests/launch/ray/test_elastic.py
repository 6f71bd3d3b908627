"""A job whose number of workers follows the nodes that there are."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig

from raycnn.config.schema import JobSpec
from raycnn.errors import ClusterError, Interrupted, SpecError
from raycnn.launch import local
from raycnn.launch.launcher import launcher_of
from raycnn.launch.ray import connection as ray_cluster
from raycnn.launch.ray import elastic
from raycnn.launch.ray.connection import Node
from raycnn.launch.ray.elastic import Elastic
from raycnn.runs.directory import Run
from raycnn.runtime.device import DEVICE_KINDS
from raycnn.training import checkpoint
from raycnn.training.callbacks import (
    RestartPlanned,
    Resumed,
    StoppedOnRequest,
    WaitingForResources,
    WorldResized,
)
from tests.conftest import distance, ended, happened, wait_for, weights, workers
from tests.launch.ray.test_nodes import WHY_NOT, Cluster, running
from tests.launch.ray.test_trainer import pids
from tests.support import network

MakeJob = Callable[..., JobSpec]


class Nodes:
    """What Ray's head says of nodes with one CPU each: it believes them all alive."""

    def __init__(self, count: int):
        self.doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        self.ports = [door.getsockname()[1] for door in self.doors]
        self.used: set[int] = set()
        self.going: dict[str, int] = {}
        self.state = SimpleNamespace(get_draining_nodes=lambda: self.going)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": str(n),
                "Alive": True,
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerPort": port,
            }
            for n, port in enumerate(self.ports)
        ]

    def available_resources_per_node(self) -> dict[str, dict[str, float]]:
        return {str(n): {"CPU": float(n not in self.used)} for n in range(len(self.ports))}

    def die(self, node: int) -> None:
        self.doors[node].close()


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    nodes = Nodes(3)
    monkeypatch.setattr(elastic, "cluster_state", nodes)
    monkeypatch.setattr(elastic, "SETTLE_S", 0.5)
    monkeypatch.setattr(elastic, "GROW_S", 0)
    yield nodes
    for door in nodes.doors:
        door.close()


def size_of(job: JobSpec) -> Elastic:
    workers = job.workers.model_copy(update={"timeout_s": 2})
    config = ScalingConfig(num_workers=workers.most, resources_per_worker={"CPU": 1})
    return Elastic(config, workers, Run.create(job))


def group_on(nodes: list[int], asked: list[Any]) -> Any:
    """A worker on each of these nodes, which notes what it is asked."""
    return SimpleNamespace(
        workers=[
            SimpleNamespace(
                execute_async=asked.append,
                metadata=SimpleNamespace(node_id=str(n), node_ip=f"10.0.0.{n}"),
            )
            for n in nodes
        ]
    )


def test_workers_start_on_the_nodes_that_answer_whatever_ray_believes(
    job: MakeJob, three: Nodes
) -> None:
    size = size_of(job(workers__count=[1, 3]))
    assert size.make_decision_for_non_running_worker_group().num_workers == 3
    three.die(1)
    assert size.make_decision_for_non_running_worker_group().num_workers == 2
    assert size.on_controller_start_worker_group() == {"ray.io/node-id": "in(0,2)"}
    assert [event.workers for event in happened(size.run, WorldResized)] == [2]


@pytest.mark.parametrize("count", [2, [2, 3]])
def test_too_little_room_is_said_and_waited_for_no_longer_than_allowed(
    job: MakeJob, three: Nodes, count: Any
) -> None:
    size = size_of(job(workers__count=count))
    three.used = {0, 1}
    lacking = "there is room for 1 of at least 2 workers of 1 CPU each"
    with pytest.raises(ClusterError, match=f"{lacking} in 2 s"):
        size.make_decision_for_non_running_worker_group()
    assert [event.reason for event in happened(size.run, WaitingForResources)] == [lacking]
    threading.Timer(1, three.used.clear).start()
    assert size.make_decision_for_non_running_worker_group().num_workers == size.workers.most


def test_who_waits_for_room_stops_when_asked_to(job: MakeJob, three: Nodes) -> None:
    size = size_of(job(workers__count=2))
    three.used = {0, 1, 2}
    size.run.request_stop()
    with pytest.raises(Interrupted, match="stopped on request: `raycnn resume"):
        size.make_decision_for_non_running_worker_group()


def test_workers_are_asked_to_save_once_room_for_more_has_stayed(
    job: MakeJob, three: Nodes
) -> None:
    size = size_of(job(workers__count=[1, 3]))
    three.used = {1, 2}
    assert size.make_decision_for_non_running_worker_group().num_workers == 1
    asked: list[Any] = []
    group = group_on([0], asked)
    three.used = {0}
    for used in ({0, 1, 2}, {0}, {0}):
        assert not asked
        three.used = used
        size.make_decision_for_running_worker_group(group, None)
    for _ in range(3):
        size.make_decision_for_running_worker_group(group, None)
    assert len(asked) == 1
    assert len(happened(size.run, RestartPlanned)) == 1


def test_workers_are_asked_to_save_before_a_node_of_theirs_goes(job: MakeJob, three: Nodes) -> None:
    size = size_of(job(workers__count=2))
    assert size.make_decision_for_non_running_worker_group().num_workers == 2
    asked: list[Any] = []
    group = group_on([0, 1], asked)
    size.make_decision_for_running_worker_group(group, None)
    three.going = {"2": 0}
    size.look_for_notices()
    size.make_decision_for_running_worker_group(group, None)
    assert not asked, "no worker is there"
    three.going = {"1": 1_900_000_000_000, "2": 0}
    size.look_for_notices()
    for _ in range(3):
        size.make_decision_for_running_worker_group(group, None)
    assert len(asked) == 1
    (planned,) = happened(size.run, RestartPlanned)
    assert "10.0.0.1" in planned.reason
    assert size.is_planned_restart([Interrupted("saved"), Interrupted("saved")])
    assert not size.is_planned_restart([]) and not size.is_planned_restart(
        [Interrupted("saved"), ValueError()]
    )
    with pytest.raises(ClusterError, match="room for 1 of at least 2"):
        size.make_decision_for_non_running_worker_group()


def test_each_worker_of_a_range_gets_the_most_that_lets_as_many_in_as_possible(
    job: MakeJob,
) -> None:
    nodes = [Node("a", {"CPU": 8}), Node("b", {"CPU": 4})]
    for count, cpus in {(1, 1): 8, (1, 3): 4, (1, 12): 1, (2, 99): 1}.items():
        asked = job(workers__count=[*count], train__batch_size=99).workers
        assert ray_cluster.resources_per_worker(asked, DEVICE_KINDS["cpu"], nodes) == {"CPU": cpus}
    with pytest.raises(ClusterError, match="13 to 20 workers of 1 CPU each do not fit"):
        ray_cluster.resources_per_worker(
            job(workers__count=[13, 20]).workers, DEVICE_KINDS["cpu"], nodes
        )


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
        local.check_world(asked)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SpecError, match="2 to 3 workers are asked for, torchrun started 4"):
        local.check_world(asked)


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
    inside = network.child_of(driver.pid)
    assert inside
    os.kill(inside, signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors
    assert "Traceback" not in errors

    saved, resumed = happened(run, StoppedOnRequest)[0], happened(run, Resumed)[-1]
    assert (saved.epoch, saved.step) == (resumed.epoch, resumed.step), "to grow costs no step"
    assert happened(run, RestartPlanned)
    state = checkpoint.read_state(run.weights("last"))
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
