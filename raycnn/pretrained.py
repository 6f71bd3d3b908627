"""Weights to begin with: ImageNet's from torchvision, a run's, or a file's. Tensors, no code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from raycnn import checkpoint
from raycnn.errors import DataError, SpecError
from raycnn.spec import Model

IMAGENET = "imagenet"
# What a network expects of its images; GoogLeNet's weights were trained elsewhere.
NORMALISATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GOOGLENET = ([0.5] * 3, [0.5] * 3)


def normalisation(choice: Model) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each channel that ImageNet's weights were trained with."""
    if choice.weights != IMAGENET:
        return None
    return GOOGLENET if _published(choice) == "googlenet" else NORMALISATION


def load(model: nn.Module, choice: Model) -> str:
    """Put the weights that a job names into its network; returns what was done, in words.

    The last layer keeps its fresh weights where the number of classes differs. Raises SpecError
    for weights of another network, DataError for what cannot be had or read.
    """
    assert choice.weights
    tensors = _imagenet(choice) if choice.weights == IMAGENET else _local(Path(choice.weights))
    own = model.state_dict()
    head = _head(own)
    fresh = [key for key in head if key in tensors and tensors[key].shape != own[key].shape]
    differ = [
        f"{key}: {checkpoint.words(tensors.get(key))} in the weights, "
        f"{checkpoint.words(own.get(key))} in the network"
        for key in sorted({*tensors, *own} - {*fresh})
        if key not in own or key not in tensors or tensors[key].shape != own[key].shape
    ]
    if differ:
        raise SpecError(
            f"{choice.weights} is of another network: {'; '.join(differ[:5])} ({len(differ)} in "
            f"all; only the last layer, {head[0].rpartition('.')[0]}, may differ in its classes)",
            "model.weights",
        )
    taken = {key: tensor for key, tensor in tensors.items() if key not in fresh}
    model.load_state_dict(taken, strict=False)
    new = f"; {', '.join(fresh)} are new, for another number of classes" if fresh else ""
    return f"begun with the weights of {choice.weights}{new}"


def _head(own: Mapping[str, Tensor]) -> list[str]:
    """The keys of the last layer."""
    layer = list(own)[-1].rpartition(".")[0]
    return [key for key in own if key.rpartition(".")[0] == layer]


def _local(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        best = checkpoint.read_index(path / "checkpoints").get("best")
        if not best:
            raise SpecError(f"{path} is no run folder with a best checkpoint", "model.weights")
        if fault := checkpoint.verify(path / "checkpoints" / best):
            raise DataError(fault)
        return checkpoint.read_tensors(path / "checkpoints" / best / checkpoint.MODEL)
    if not path.is_file():
        raise SpecError(f"there is no {path}; {IMAGENET} names torchvision's", "model.weights")
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path)
    return _tensors(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path} is refused: it must hold tensors alone ({first})") from None


def _tensors(saved: Any, source: object) -> dict[str, Tensor]:
    """A state dict, as it is or under `state_dict` or `model`, without DDP's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not all(isinstance(t, Tensor) for t in saved.values()):
        raise DataError(f"{source} holds no state dict: names and their tensors")
    return {str(key).removeprefix("module."): tensor for key, tensor in saved.items()}


def _published(choice: Model) -> str:
    """torchvision's name of a network."""
    name = choice.name.removeprefix("torchvision:")
    return f"{name}_bn" if choice.options.get("batch_norm") else name


def _imagenet(choice: Model) -> Mapping[str, Tensor]:
    from torchvision import models  # slow to import

    name = _published(choice)
    if name not in models.list_models(module=models):
        raise SpecError(f"torchvision has no {name} trained on ImageNet", "model.weights")
    weights = models.get_model_weights(name).DEFAULT
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"could not download {weights.url}: {error}; model.weights may name a file instead"
        ) from None
    return {
        key: tensor for key, tensor in tensors.items() if not key.startswith(("aux", "AuxLogits"))
    }
