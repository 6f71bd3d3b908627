"""The driver's disk, served to nodes that do not see it; see test_nodes.py for both ends of Ray."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable
from raycnn.launch.ray import process_group, served_files, shared_folder
from raycnn.launch.ray.served_files import FileServer, ServedFolder
from raycnn.runs.directory import Run
from raycnn.runs.remote.working_copy import WorkingCopy
from raycnn.search.folder import Search
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import Warned
from tests.support.runs import happened, numbers, same, train, weights
from tests.support.searches import Read, begin, go

MakeJob = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tiny network's checkpoint is carried in many."""
    monkeypatch.setattr(served_files, "CHUNK", 1000)


class Node:
    """A node that reaches the server of a run's folder, but not the folder."""

    def __init__(self, home: Run, folder: Path):
        self.server, self.full, self.calls = FileServer(str(home.folder)), False, 0
        self.run = Run(folder, WorkingCopy(ServedFolder(self._call, str(home.folder)), folder, 0.1))

    def _call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        assert len(pickle.dumps(arguments)) < 2 * served_files.CHUNK
        if self.full and method == "write" and checkpoint_folder.OPTIMIZER in arguments[0]:
            raise OSError(28, "No space left on device")
        return getattr(self.server, method)(*arguments)


def test_what_a_node_trains_is_in_the_drivers_folder(job: MakeJob, tmp_path: Path) -> None:
    home = Run.create(job())
    node = Node(home, tmp_path / "node")
    assert node.run.copy
    node.run.copy.pull()
    with node.run.syncing(0, 60):
        train(job(), node.run)
        home.add_event(Warned(text="from the driver"))
    unbroken = train(job())
    assert same(weights(home), weights(unbroken)) and home.result()
    assert checkpoint_folder.read_index(home.checkpoints) == checkpoint_folder.read_index(
        node.run.checkpoints
    )
    assert sorted(os.listdir(home.checkpoints)) == sorted(os.listdir(node.run.checkpoints))
    assert (home.folder / "logs" / "rank-0.log").exists() and len(home.rows()) == 3
    assert happened(home, Warned)[-1].text == "from the driver"

    other = Node(home, tmp_path / "other")
    assert other.run.copy
    other.run.copy.pull()
    with other.run.syncing(0, 60):
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
    with pytest.raises(EnvironmentUnavailable, match="No space left"), node.run.syncing(0, 60):
        train(job(train__epochs=1), node.run)
        assert node.run.wait_flushed(60)
        before = weights(home)
        node.full = True
        train(job(train__epochs=2), node.run)
        assert node.run.wait_flushed(60)
    path, faults = home.latest_checkpoint()
    assert path and path.name == "00001-00000000" and same(weights(home), before)


def test_a_folder_with_the_same_path_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    shared = shared_folder.share_folder(tmp_path, serve=False)
    with shared_folder.open_shared_run(shared, 10) as run:
        assert run.folder == run.location == tmp_path
    above = shared_folder.share_folder(tmp_path.parent, serve=False)
    assert not shared._replace(folder_id=above.folder_id).is_here()
    assert not shared._replace(location=str(tmp_path / "nowhere")).is_here()


def test_a_trial_is_trained_and_stopped_by_a_node_that_reaches_only_the_server(
    read: Read,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the driver's folder: both trials, of which the second is stopped for the first."""
    monkeypatch.setattr(
        shared_folder, "RemoteCalls", lambda server, _: lambda m, *a: getattr(server, m)(*a)
    )
    monkeypatch.setattr(served_files, "CHUNK", 16 << 20)
    tune = (
        "tune: {scheduler: {name: asha, factor: 2}, space: {optimizer.lr: {grid: [0.05, 0.001]}}}\n"
    )
    (here, there) = (Search.create(read(tune)) for _ in range(2))
    go(here, *begin(here, [0.05, 0.001]))

    server = FileServer(str(there.folder))
    shared = shared_folder.share_folder(there.folder, serve=False)._replace(server=server)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(shared_folder.SharedFolder, "is_here", lambda self: False)
        for one in begin(there, [0.05, 0.001]):
            with shared_folder.open_shared_trial(shared, one.id, 60) as (search, trial):
                assert search.folder != there.folder and trial.run.folder != one.run.folder
                go(search, trial)
    assert [one.info["state"] for one in here.trials()] == ["done", "stopped"]
    for one, other in zip(here.trials(), there.trials(), strict=True):
        assert one.info["state"] == other.info["state"] and numbers(one.run) == numbers(other.run)
        assert same(weights(one.run), weights(other.run))
        assert sorted(os.listdir(one.run.checkpoints)) == sorted(os.listdir(other.run.checkpoints))


def test_a_network_interface_is_found_by_its_address() -> None:
    assert process_group.find_interface("127.0.0.1") == "lo"
    assert process_group.find_interface("203.0.113.1") is None
