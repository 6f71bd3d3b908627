"""The driver's disk, served to nodes that do not see it; see test_nodes.py for both ends of Ray."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable
from raycnn.launch.ray import network, relay
from raycnn.launch.ray.relay import FileServer
from raycnn.runs.directory import Run
from raycnn.runs.working_copy import WorkingCopy
from raycnn.training import checkpoint
from raycnn.training.callbacks import Warned
from tests.conftest import happened, same, train, weights

MakeJob = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tiny network's checkpoint is carried in many."""
    monkeypatch.setattr(relay, "CHUNK", 1000)


class Node:
    """A node that reaches the server of a run's folder, but not the folder."""

    def __init__(self, home: Run, folder: Path):
        self.server, self.full, self.calls = FileServer(str(home.folder)), False, 0
        self.run = Run(folder, WorkingCopy(relay.open_served(self._call, home.folder), folder, 0.1))

    def _call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        assert len(pickle.dumps(arguments)) < 2 * relay.CHUNK
        if self.full and method == "write" and checkpoint.OPTIMIZER in arguments[0]:
            raise OSError(28, "No space left on device")
        return getattr(self.server, method)(*arguments)


def test_what_a_node_trains_is_in_the_drivers_folder(job: MakeJob, tmp_path: Path) -> None:
    home = Run.create(job())
    node = Node(home, tmp_path / "node")
    assert node.run.copy
    node.run.copy.pull()
    with node.run.syncing(60):
        train(job(), node.run)
        home.add_event(Warned(text="from the driver"))
    unbroken = train(job())
    assert same(weights(home), weights(unbroken)) and home.result()
    assert checkpoint.read_index(home.checkpoints) == checkpoint.read_index(node.run.checkpoints)
    assert sorted(os.listdir(home.checkpoints)) == sorted(os.listdir(node.run.checkpoints))
    assert (home.folder / "logs" / "rank-0.log").exists() and len(home.rows()) == 3
    assert happened(home, Warned)[-1].text == "from the driver"

    other = Node(home, tmp_path / "other")
    assert other.run.copy
    other.run.copy.pull()
    with other.run.syncing(60):
        train(job(train__epochs=4), other.run)
    train(job(train__epochs=4), unbroken)
    assert same(weights(home), weights(unbroken)) and len(home.rows()) == 4


def test_a_full_disk_of_the_driver_leaves_the_checkpoint_before(
    job: MakeJob, tmp_path: Path
) -> None:
    home = Run.create(job())
    node = Node(home, tmp_path / "node")
    assert node.run.copy
    node.run.copy.pull()
    with pytest.raises(EnvironmentUnavailable, match="No space left"), node.run.syncing(60):
        train(job(train__epochs=1), node.run)
        node.run.wait_flushed()
        before = weights(home)
        node.full = True
        train(job(train__epochs=2), node.run)
        node.run.wait_flushed()
    path, faults = home.newest()
    assert path and path.name == "00001-00000000" and same(weights(home), before)


def test_a_folder_with_the_same_path_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    mark = relay.write_token(Run(tmp_path))
    with relay.open_on_worker(tmp_path, mark, None, 10) as run:
        assert run.folder == run.location == tmp_path
    assert not relay.has_token(tmp_path, relay.write_token(Run(tmp_path.parent)))
    assert not relay.has_token(tmp_path / "nowhere", mark)


def test_an_interface_is_found_by_its_address() -> None:
    assert network.interface("127.0.0.1") == "lo"
    assert network.interface("203.0.113.1") is None
