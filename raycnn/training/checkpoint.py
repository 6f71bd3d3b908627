"""The state of a training, saved whole or not at all. No pickle: safetensors and JSON.

A checkpoint is a folder `EPOCH-STEP` (epochs done, steps done of the next one) written under a
temporary name, synced and renamed. `index.json` names the last and the best one and is renamed
after it; the one before the last is kept until then, and still after, in case the last is damaged.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raycnn.errors import DataError
from raycnn.training.ema import EMA, copy
from raycnn.training.loss_scale import LossScale
from raycnn.training.metrics import EpochMetrics
from raycnn.training.optim import Optimizer

MODEL, OPTIMIZER, STATE, INDEX = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "index.json",
)
TENSORS = (MODEL, OPTIMIZER)
RAW = "raw/"  # the weights under training, where the model's are their average

Row = dict[str, float]


@dataclass
class TrainingState:
    """Everything that a training needs to go on from here."""

    model: nn.Module
    optimizer: Optimizer
    about: dict[str, Any]
    """The resolved spec, class names, input shape, normalisation, data fingerprint, versions."""
    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch under way."""
    seen: EpochMetrics = field(default_factory=EpochMetrics)
    """What those steps saw."""
    history: list[Row] = field(default_factory=list)
    """One row of metrics for each epoch done."""
    best: int | None = None
    """The epoch, counted from 1, with the best validation accuracy."""
    scale: LossScale | None = None
    average: EMA | None = None
    lr_backoffs: list[float] = field(default_factory=list)
    """A factor of the learning rate for each time that a loss was not finite."""

    @property
    def name(self) -> str:
        return f"{self.epoch:05d}-{self.step:08d}"

    @property
    def is_best(self) -> bool:
        return self.best == self.epoch and not self.step

    def close_epoch(self, row: Row) -> None:
        self.epoch, self.step, self.seen = self.epoch + 1, 0, EpochMetrics()
        self.history.append(row)
        if self.best is None or _selection_key(row) > _selection_key(self.history[self.best - 1]):
            self.best = self.epoch


def _selection_key(row: Row) -> tuple[float, float]:
    """Accuracy on held-out images, then their loss; without any, the later epoch is the better."""
    if "val/acc1" not in row:
        return row["epoch"], 0.0
    return row["val/acc1"], -row["val/loss"]


def save(state: TrainingState, folder: Path) -> None:
    """Write the state into `folder`, then the index. OSError leaves what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    index = read_index(folder)
    again = index.get("last") == state.name
    if not again or verify(folder / state.name):
        _write(state, folder)
    new = {
        "last": state.name,
        "previous": index.get("previous" if again else "last"),
        "best": state.name if state.is_best else index.get("best"),
    }
    write_index(new, folder)
    drop_others(folder, new.values())


def drop_others(folder: Path, names: Collection[str | None]) -> None:
    """Remove every checkpoint that has none of these names, and what is left of saves."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path) -> None:
    """Keep the last and the best checkpoint alone, of a training that has ended."""
    if index := read_index(folder):
        index |= {"previous": None}
        write_index(index, folder)
        drop_others(folder, index.values())


def copy_all(source: Path, target: Path) -> None:
    """Put the last and the best checkpoint of one folder in the place of all those of another."""
    temporary = target.with_name(f".{target.name}")
    for path in (temporary, target):
        shutil.rmtree(path, ignore_errors=True)
    index = read_index(source) | {"previous": None}
    for name in {name for name in index.values() if name}:
        shutil.copytree(source / name, temporary / name)
        for path in (*(temporary / name).iterdir(), temporary / name):
            _sync(path)
    write_index(index, temporary)
    temporary.rename(target)
    _sync(target.parent)


def _write(state: TrainingState, folder: Path) -> None:
    temporary, final = folder / f".{state.name}", folder / state.name
    temporary.mkdir()
    try:
        for name, tensors in ((MODEL, weights(state)), (OPTIMIZER, _training_tensors(state))):
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            _save_tensors(plain, temporary / name)
        files = {name: _facts(temporary / name) for name in TENSORS}
        keys = ("about", "epoch", "step", "history", "best", "lr_backoffs")
        saved = {key: getattr(state, key) for key in keys}
        body = {"files": files, "seen": asdict(state.seen), **saved}
        _write_json(temporary / STATE, {"sha256": _digest(body), **body})
        install(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def install(temporary: Path, final: Path) -> None:
    """Give a checkpoint whose files are written its name."""
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if final.exists():  # damaged, or it would have been gone on from
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)


def weights(state: TrainingState) -> dict[str, Tensor]:
    """What is validated, tested and shipped: (averaged) parameters, and buffers."""
    return state.model.state_dict() | (state.average.tensors if state.average else {})


def _training_tensors(state: TrainingState) -> dict[str, Tensor]:
    """What training needs besides."""
    tensors = state.optimizer.state() | (state.scale.state() if state.scale else {})
    if state.average:
        tensors |= {f"{RAW}{name}": p for name, p in state.average.named.items()}
    return tensors


def point_to(checkpoint: Path, best: bool) -> None:
    """Have the index name this one as the last, where a kill or damage left it naming another."""
    index = read_index(checkpoint.parent) | {"last": checkpoint.name}
    write_index(index | ({"best": checkpoint.name} if best else {}), checkpoint.parent)


def write_index(index: dict[str, str | None], folder: Path) -> None:
    _write_json(folder / f".{INDEX}", index)
    os.replace(folder / f".{INDEX}", folder / INDEX)
    _sync(folder)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how it wraps a full disk
        raise OSError(str(error)) from error


def read_index(folder: Path) -> dict[str, str | None]:
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with any newer one.

    Raises DataError when there are checkpoints and none is whole.
    """
    names = sorted(path.name for path in folder.glob("[0-9]*-[0-9]*") if path.is_dir())
    faults: list[str] = []
    for name in reversed(names):
        fault = verify(folder / name)
        if not fault:
            return folder / name, faults
        faults.append(fault)
    if faults:
        raise DataError("no checkpoint is whole: " + "; ".join(faults))
    return None, []


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = read_state(checkpoint)["files"]
        for name in TENSORS:
            if _facts(checkpoint / name) != files[name]:
                return f"{checkpoint / name} is not what was written (size or SHA-256 differ)"
    except (DataError, OSError, KeyError, TypeError) as error:
        return f"{checkpoint} is damaged: {error}"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises DataError when it is not what was written."""
    try:
        state = dict(json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {checkpoint / STATE}: {error}") from None
    if state.pop("sha256", None) != _digest(state):
        raise DataError(f"{checkpoint / STATE} is not what was written: its SHA-256 differs")
    return state


def restore(state: TrainingState, checkpoint: Path) -> None:
    """Put a checkpoint into a state of the same job."""
    saved = read_state(checkpoint)
    load_weights(state.model, checkpoint)
    beside = read_tensors(checkpoint / OPTIMIZER)
    state.optimizer.load(beside)
    if state.scale:
        state.scale.load(beside)
    if state.average:
        copy(state.average.named, state.average.tensors)
    raw = {key.removeprefix(RAW): tensor for key, tensor in beside.items() if key.startswith(RAW)}
    copy(raw, {name: p for name, p in state.model.named_parameters() if name in raw})
    state.epoch, state.step = saved["epoch"], saved["step"]
    state.history, state.best = saved["history"], saved["best"]
    state.seen, state.lr_backoffs = EpochMetrics(**saved["seen"]), saved.get("lr_backoffs", [])


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Copy a checkpoint's weights into a model. Raises DataError naming what differs."""
    tensors = read_tensors(checkpoint / MODEL)
    own = model.state_dict()
    differ = [
        f"{key}: {words(tensors.get(key))} in the checkpoint, {words(own.get(key))} in the model"
        for key in sorted({*tensors, *own})
        if words(tensors.get(key)) != words(own.get(key))
    ]
    if differ:
        raise DataError(f"{checkpoint} is of another network: {'; '.join(differ[:5])}")
    model.load_state_dict(tensors)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def words(tensor: Tensor | None) -> str:
    """The shape of a tensor, for people."""
    return "nothing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clean(folder: Path) -> None:
    """Remove what a process that was killed had half written."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
