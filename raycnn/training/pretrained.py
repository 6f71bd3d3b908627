"""Weights to begin with: ImageNet's from torchvision, a run's, or a file's. Tensors, no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from raycnn.config.schema import Model
from raycnn.errors import DataError, SpecError
from raycnn.models import torchvision
from raycnn.training import checkpoint

IMAGENET = "imagenet"
PUBLISHED = (
    ": ImageNet's are of alexnet with form: large, googlenet with kernel: 3 and stem: large, "
    "resnets with stem: large, vggs with pooled: 7"
)
Weights = Mapping[str, Tensor]

# What a network expects of its images; some weights were trained elsewhere.
NORMALISATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5] * 3, [0.5] * 3)
TRAINED_ELSEWHERE = {"efficientnet_v2_l", "googlenet", "inception_v3"}


def normalisation(choice: Model) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each channel that ImageNet's weights were trained with."""
    if choice.weights != IMAGENET:
        return None
    return HALVES if published(choice) in TRAINED_ELSEWHERE else NORMALISATION


def check(model: nn.Module, choice: Model) -> None:
    """Raises SpecError for weights that are not there, or not of the network, without reading."""
    if choice.weights == IMAGENET:
        from torchvision import models  # slow to import

        if published(choice) not in models.list_models(module=models):
            raise SpecError(
                f"torchvision has no {choice.name} trained on ImageNet", "model.weights"
            )
        with torch.device("meta"):
            peer = torchvision.fresh(published(choice))
        _fresh(model.state_dict(), _useful(peer.state_dict()), choice)
    elif choice.weights and not Path(choice.weights).exists():
        raise SpecError(f"there is no {choice.weights}", "model.weights")


def load(model: nn.Module, choice: Model) -> list[str]:
    """Put the weights that a job names into its network; return the parameters they lack.

    The last layer keeps its fresh weights where the number of classes differs. Raises SpecError
    for weights of another network, DataError for what cannot be had or read.
    """
    assert choice.weights
    tensors = _imagenet(choice) if choice.weights == IMAGENET else _local(Path(choice.weights))
    fresh = _fresh(model.state_dict(), tensors, choice)
    taken = {key: tensor for key, tensor in tensors.items() if key not in fresh}
    model.load_state_dict(taken, strict=False)
    return fresh


def _fresh(own: Weights, tensors: Weights, choice: Model) -> list[str]:
    """What of the last layer does not fit. Raises SpecError when anything else does not."""
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
            f"all; only the last layer, {head[0].rpartition('.')[0]}, may differ in its classes)"
            f"{PUBLISHED if choice.weights == IMAGENET else ''}",
            "model.weights",
        )
    return fresh


def _head(own: Weights) -> list[str]:
    """The keys of the last layer."""
    layer = list(own)[-1].rpartition(".")[0]
    return [key for key in own if key.rpartition(".")[0] == layer]


def _local(path: Path) -> Weights:
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
    except Exception as error:  # torch raises whatever the bytes lead it to
        why = f"not read as such: {type(error).__name__}"
        raise DataError(f"{path} is refused: it must hold tensors alone ({why})") from None


def _tensors(saved: Any, source: object) -> dict[str, Tensor]:
    """A state dict, as it is or under `state_dict` or `model`, without DDP's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not all(isinstance(t, Tensor) for t in saved.values()):
        raise DataError(f"{source} holds no state dict: names and their tensors")
    return {str(key).removeprefix("module."): tensor for key, tensor in saved.items()}


def published(choice: Model) -> str:
    """torchvision's name of a network."""
    name = choice.name.removeprefix("torchvision:")
    return f"{name}_bn" if choice.options.get("batch_norm") else name


def _imagenet(choice: Model) -> Weights:
    from torchvision import models

    name = published(choice)
    weights = models.get_model_weights(name).DEFAULT
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"could not download {weights.url}: {error}; model.weights may name a file instead"
        ) from None
    return _useful(tensors)


def _useful(tensors: Weights) -> Weights:
    """Without the heads that are of no use after training."""
    auxiliary = ("aux", "AuxLogits")
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(auxiliary)}
