import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raycnn.config.components import OPTIMIZERS
from raycnn.config.schema import ComponentConfig, Model
from raycnn.errors import DataError
from raycnn.models import build_model
from raycnn.shape import Shape
from raycnn.training import checkpoint, checkpoint_folder
from raycnn.training.checkpoint import TrainingState
from raycnn.training.schedules import Rates


def state(epoch: int = 0, step: int = 0) -> TrainingState:
    """One that has taken a step, so that its optimizer has something to keep."""
    torch.manual_seed(epoch)
    model = build_model(Model(name="lenet"), Shape(1, 12, 12), 3)
    optimizer = OPTIMIZERS.build(ComponentConfig(name="adam", lr=0.1), model.named_parameters())
    model(torch.randn(2, 1, 12, 12)).sum().backward()
    optimizer.step(Rates(1.0))
    rows = [{"epoch": float(e + 1), "val/acc1": e / 10} for e in range(epoch)]
    best = epoch or None
    return TrainingState(model, optimizer, {"classes": ["a"]}, epoch, step, history=rows, best=best)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved, other = state(2, 5), state(0)
    checkpoint.save_checkpoint(saved, tmp_path)
    path, faults = checkpoint_folder.latest_valid_checkpoint(tmp_path)
    assert path and not faults
    checkpoint.restore(other, path)
    for key, tensor in saved.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[key])
    for key, tensor in saved.optimizer.state_dict().items():
        assert torch.equal(tensor, other.optimizer.state_dict()[key])
    assert (other.epoch, other.step, other.best, other.history) == (2, 5, 2, saved.history)


def test_the_last_the_one_before_and_the_best_are_kept_and_no_more(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    for step in (3, 6, 9):
        checkpoint.save_checkpoint(state(1, step), tmp_path)
    kept = ["00001-00000000", "00001-00000006", "00001-00000009"]
    assert names(tmp_path) == [*kept, "index.json"]
    index = checkpoint_folder.read_index(tmp_path)
    assert (index["best"], index["previous"], index["last"]) == tuple(kept)


def test_saving_twice_at_one_step_changes_nothing(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    checkpoint.save_checkpoint(state(1, 3), tmp_path)
    before = checkpoint_folder.read_index(tmp_path)
    checkpoint.save_checkpoint(state(1, 3), tmp_path)
    assert checkpoint_folder.read_index(tmp_path) == before


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    tmp_path: Path, file: str, harm: str
) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    checkpoint.save_checkpoint(state(1, 3), tmp_path)
    victim = tmp_path / "00001-00000003" / file
    content = bytearray(victim.read_bytes())
    if harm == "remove":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b'"step": 3') + 8 if file == "state.json" else len(content) // 2
        content[at] ^= 1  # a digit becomes another digit
        victim.write_bytes(content)
    path, faults = checkpoint_folder.latest_valid_checkpoint(tmp_path)
    assert path == tmp_path / "00001-00000000"
    assert len(faults) == 1 and "00001-00000003" in faults[0]


def test_when_no_checkpoint_is_whole_training_does_not_begin_anew(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    (tmp_path / "00001-00000000" / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="no valid checkpoint"):
        checkpoint_folder.latest_valid_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_written_anew_when_its_step_comes_again(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    checkpoint.save_checkpoint(state(1, 3), tmp_path)
    (tmp_path / "00001-00000003" / "model.safetensors").write_bytes(b"")
    checkpoint.save_checkpoint(state(1, 3), tmp_path)
    assert checkpoint_folder.latest_valid_checkpoint(tmp_path) == (tmp_path / "00001-00000003", [])


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk: the write really fails half-way."""
    checkpoint.save_checkpoint(state(1), tmp_path)
    code = f"""
import resource, signal
from pathlib import Path
from tests.training.test_checkpoint import checkpoint, state
late = state(2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save_checkpoint(late, Path({str(tmp_path)!r}))
except OSError:
    raise SystemExit(7)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 7
    assert checkpoint_folder.latest_valid_checkpoint(tmp_path) == (tmp_path / "00001-00000000", [])
    assert names(tmp_path) == ["00001-00000000", "index.json"]


@pytest.mark.parametrize("moment", ["safetensors.torch.save_file", "os.replace", "os.fsync"])
def test_killed_while_writing_the_checkpoint_before_stays(tmp_path: Path, moment: str) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    module, _, name = moment.rpartition(".")
    code = f"""
import os, signal
from pathlib import Path
from tests.training.test_checkpoint import checkpoint, state
late = state(2)
import {module} as module
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
module.{name} = checkpoint.save_file = die if {name!r} == "save_file" else checkpoint.save_file
module.{name} = die
checkpoint.save_checkpoint(late, Path({str(tmp_path)!r}))
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root).returncode
    assert killed == -signal.SIGKILL
    path, _ = checkpoint_folder.latest_valid_checkpoint(tmp_path)
    assert path and checkpoint_folder.verify_checkpoint(path) is None
    assert checkpoint_folder.read_index(tmp_path)["last"] == "00001-00000000"
    checkpoint.save_checkpoint(state(2, 4), tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_weights_of_another_network_are_refused_with_their_shapes(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path)
    other = build_model(Model(name="lenet"), Shape(1, 12, 12), 4)
    with pytest.raises(DataError, match="head.bias: 3 .*4 "):
        checkpoint.load_weights(other, tmp_path / "00001-00000000")


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "executed"),)

    checkpoint.save_checkpoint(state(1), tmp_path)
    for name in ("model.safetensors", "optimizer.safetensors"):
        (tmp_path / "00001-00000000" / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError):
        checkpoint.load_weights(state(1).model, tmp_path / "00001-00000000")
    assert not (tmp_path / "executed").exists()


def test_checkpoints_can_be_moved(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(state(1), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert checkpoint_folder.latest_valid_checkpoint(tmp_path / "there") == (
        tmp_path / "there" / "00001-00000000",
        [],
    )
