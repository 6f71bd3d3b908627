"""Checkpoints on their way between two folders, each at an end of Ray; see test_nodes.py for both."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.launch.ray import network, relay
from raycnn.launch.ray.relay import Checkpoints, carry
from raycnn.runs.directory import Run
from raycnn.training import checkpoint
from tests.conftest import same, train, weights

MakeJob = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tiny network's checkpoint is carried in many."""
    monkeypatch.setattr(relay, "CHUNK", 1000)


def test_what_is_carried_is_what_was_saved_and_no_more(job: MakeJob, tmp_path: Path) -> None:
    near, far = train(job()), Run(tmp_path / "far")
    far.checkpoints.mkdir(parents=True)
    carry(Checkpoints(near), Checkpoints(far))
    assert same(weights(near), weights(far)) and same(weights(near, "best"), weights(far, "best"))

    train(job(train__epochs=4), near)
    carry(Checkpoints(near), Checkpoints(far))
    assert checkpoint.read_index(far.checkpoints) == checkpoint.read_index(near.checkpoints)
    assert sorted(os.listdir(far.checkpoints)) == sorted(os.listdir(near.checkpoints))
    assert same(weights(near), weights(far))


def test_a_checkpoint_whose_way_was_cut_short_leaves_the_one_before(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = train(job(train__epochs=1)), Run(tmp_path / "far")
    far.checkpoints.mkdir(parents=True)
    carry(Checkpoints(near), Checkpoints(far))
    before = weights(far)
    train(job(train__epochs=2), near)

    class Full(Checkpoints):
        def write(self, name: str, file: str, offset: int, data: bytes) -> None:
            if file == checkpoint.OPTIMIZER and offset:
                raise OSError(28, "No space left on device")
            super().write(name, file, offset, data)

    with pytest.raises(OSError, match="No space left"):
        carry(Checkpoints(near), Full(far))
    assert same(weights(far), before) and far.newest()[1] == []

    carry(Checkpoints(near), Checkpoints(far))
    assert same(weights(far), weights(near))


def test_a_folder_with_the_same_path_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    mark = relay.mark(Run(tmp_path))
    with relay.opened(tmp_path, mark, None, 10) as run:
        assert run.folder == run.home == tmp_path
    assert not relay.sees(tmp_path, relay.mark(Run(tmp_path.parent)))
    assert not relay.sees(tmp_path / "nowhere", mark)


def test_an_interface_is_found_by_its_address() -> None:
    assert network.interface("127.0.0.1") == "lo"
    assert network.interface("203.0.113.1") is None
