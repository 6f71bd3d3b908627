"""TensorBoard on a disk that is nearly full: an error before the writer's own thread meets one."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.runs.tensorboard import SPARE_BYTES, TensorBoardWriter
from raycnn.training.callbacks import EpochEnded

ROW = {"epoch": 1.0, "train/loss": 0.5}


def test_on_a_nearly_full_disk_no_event_file_is_begun(
    job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TensorBoardWriter(Run.create(job()))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SPARE_BYTES - 1))
        with pytest.raises(OSError, match="no space left"):
            writer.on_event(EpochEnded(metrics=ROW))
    assert not list(writer.folder.iterdir())
    writer.on_event(EpochEnded(metrics=ROW))
    writer.close()
    assert len(list(writer.folder.iterdir())) == 1, "it goes on once there is space"
