"""Checkpoints: the training state as safetensors and JSON, written atomically.

A checkpoint is written under a temporary name, synced and renamed; the index of its folder is
replaced afterwards (training/checkpoint_folder.py). Nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raycnn import io
from raycnn.errors import DataError
from raycnn.training.checkpoint_folder import (
    MODEL,
    OPTIMIZER,
    delete_except,
    read_index,
    read_state,
    remove_incomplete,
    verify_checkpoint,
    write_index,
    write_state,
)
from raycnn.training.ema import EMA, copy_tensors
from raycnn.training.loss_scale import LossScale
from raycnn.training.main_metric import val_metric
from raycnn.training.metrics import EpochMetrics
from raycnn.training.optim import Optimizer

RAW = "raw/"  # prefix of the raw weights, if the model file holds their EMA

Row = dict[str, float]


@dataclass
class TrainingState:
    """Everything that is needed to resume training."""

    model: nn.Module
    optimizer: Optimizer
    metadata: dict[str, Any]
    """Metadata: the spec, class names, input shape, normalization, data fingerprint, versions."""
    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed steps of the current epoch."""
    epoch_metrics: EpochMetrics = field(default_factory=EpochMetrics)
    """Training metrics of those steps."""
    history: list[Row] = field(default_factory=list)
    """One row of metrics for each completed epoch."""
    best: int | None = None
    """Epoch, from 1, with the best validation accuracy or mAP."""
    scale: LossScale | None = None
    """Dynamic loss scale, for fp16."""
    ema: EMA | None = None
    """Exponential moving average of the weights, if `train.ema` is set."""
    lr_backoffs: list[float] = field(default_factory=list)
    """Factor on the learning rate for each rollback after a loss that was not finite."""

    @property
    def name(self) -> str:
        """Name of the checkpoint folder of this state."""
        return f"{self.epoch:05d}-{self.step:08d}"

    @property
    def is_best(self) -> bool:
        """Whether the epoch that just ended is the best so far."""
        return self.best == self.epoch and not self.step

    def close_epoch(self, row: Row) -> None:
        """Mark the current epoch as completed, with its row of metrics."""
        self.epoch, self.step, self.epoch_metrics = self.epoch + 1, 0, EpochMetrics()
        self.history.append(row)
        if self.best is None or _selection_key(row) > _selection_key(self.history[self.best - 1]):
            self.best = self.epoch


def _selection_key(row: Row) -> tuple[float, float]:
    """Return the key to order epochs by: validation accuracy or mAP, then loss; else the epoch."""
    if not (metric := val_metric(row)):
        return row["epoch"], 0.0
    return row[metric], -row["val/loss"]


def save_checkpoint(state: TrainingState, folder: Path) -> None:
    """Write a checkpoint of the state into `folder`, then update the index.

    Raises OSError if writing fails; existing checkpoints stay intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_incomplete(folder)
    index = read_index(folder)
    same_name = index.get("last") == state.name
    if not same_name or verify_checkpoint(folder / state.name):
        _write(state, folder)
    new = {
        "last": state.name,
        "previous": index.get("previous" if same_name else "last"),
        "best": state.name if state.is_best else index.get("best"),
    }
    write_index(new, folder)
    delete_except(folder, new.values())


def _write(state: TrainingState, folder: Path) -> None:
    # A checkpoint of this name is damaged: a valid one would have been resumed from.
    with io.atomic_folder(folder / state.name, durable=True) as temporary:
        for name, tensors in ((MODEL, weights(state)), (OPTIMIZER, _training_tensors(state))):
            on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            _save_tensors(on_cpu, temporary / name)
        keys = ("epoch", "step", "history", "best", "lr_backoffs")
        # These two keys have the names of earlier versions, whose checkpoints stay readable.
        body = {"about": state.metadata, "seen": asdict(state.epoch_metrics)}
        write_state(body | {key: getattr(state, key) for key in keys}, temporary)


def weights(state: TrainingState) -> dict[str, Tensor]:
    """Return the tensors to validate, test and export: buffers, and parameters or their EMA."""
    return state.model.state_dict() | (state.ema.tensors if state.ema else {})


def _training_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return the other tensors that resuming needs: optimizer, loss scale, raw weights."""
    tensors = state.optimizer.state_dict() | (state.scale.state_dict() if state.scale else {})
    if state.ema:
        tensors |= {f"{RAW}{name}": p for name, p in state.ema.parameters.items()}
    return tensors


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # safetensors raises it for a full disk
        raise OSError(str(error)) from error


def restore(state: TrainingState, checkpoint: Path) -> None:
    """Load a checkpoint into a state of the same job. Raises DataError if it does not match."""
    saved = read_state(checkpoint)
    load_weights(state.model, checkpoint)
    training = read_tensors(checkpoint / OPTIMIZER)
    state.optimizer.load_state_dict(training)
    if state.scale:
        state.scale.load_state_dict(training)
    if state.ema:
        copy_tensors(src=state.ema.parameters, dst=state.ema.tensors)
    raw = {key.removeprefix(RAW): tensor for key, tensor in training.items() if key.startswith(RAW)}
    parameters = {name: p for name, p in state.model.named_parameters() if name in raw}
    copy_tensors(src=raw, dst=parameters)
    state.epoch, state.step = saved["epoch"], saved["step"]
    state.history, state.best = saved["history"], saved["best"]
    state.epoch_metrics = EpochMetrics(**saved["seen"])
    state.lr_backoffs = saved.get("lr_backoffs", [])


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Copy a checkpoint's weights into a model.

    Raises DataError, with the tensors that differ, if it does not match the model.
    """
    tensors = read_tensors(checkpoint / MODEL)
    expected = model.state_dict()
    mismatches = [
        f"{key}: {format_shape(tensors.get(key))} in the checkpoint, "
        f"{format_shape(expected.get(key))} in the model"
        for key in sorted({*tensors, *expected})
        if format_shape(tensors.get(key)) != format_shape(expected.get(key))
    ]
    if mismatches:
        raise DataError(f"{checkpoint} does not match the model: {'; '.join(mismatches[:5])}")
    model.load_state_dict(tensors)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file. Raises DataError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def format_shape(tensor: Tensor | None) -> str:
    """Return the shape of a tensor for display: `64x3x7x7`."""
    return "nothing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"
