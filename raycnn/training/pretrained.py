"""Initial weights: from torchvision (ImageNet), a run or a file. No code is unpickled."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from raycnn.config.schema import Model
from raycnn.errors import DataError, SpecError
from raycnn.models import torchvision
from raycnn.models.weights import IMAGENET, torchvision_name
from raycnn.training import checkpoint, checkpoint_folder

PUBLISHED = (
    ": ImageNet's are of alexnet with form: large, googlenet with kernel: 3 and stem: large, "
    "resnets with stem: large, vggs with pool_size: 7"
)
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
WRAPPERS = ("_orig_mod", "module")  # prefixes that torch.compile and DDP add to parameter names
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # prefixes of auxiliary heads, used only in training
EXTRA_BUFFERS = ("n_averaged",)  # the counter of torch's AveragedModel
Weights = Mapping[str, Tensor]


class Adapted(NamedTuple):
    """Weights adapted to a network."""

    tensors: dict[str, Tensor]
    """Tensors to load, by the network's keys."""
    new_layers: list[str]
    """Keys of the last layer that keep their random weights: of another shape, or missing."""
    changes: list[str]
    """Changes made to the weights, for display."""


def check_weights(model: nn.Module, choice: Model) -> list[str]:
    """Return the changes that `load_pretrained` would make to a job's weights, for display.

    Files are read; ImageNet weights are not downloaded. Raises the errors of `load_pretrained`.
    """
    if not choice.weights:
        return []
    if choice.weights != IMAGENET:
        return _adapt(model.state_dict(), _load_local(Path(choice.weights)), choice).changes
    from torchvision import models  # slow to import

    if torchvision_name(choice) not in models.list_models(module=models):
        raise SpecError(f"torchvision has no {choice.name} trained on ImageNet", "model.weights")
    with torch.device("meta"):
        published = torchvision.plain_classifier(torchvision_name(choice))
    return _adapt(model.state_dict(), published.state_dict(), choice).changes


def load_pretrained(model: nn.Module, choice: Model) -> Adapted:
    """Load the weights that a job names into its network; return which, and how they were adapted.

    The last layer keeps its random weights if the number of classes differs. Raises SpecError for
    weights that do not match the model, DataError if they cannot be downloaded or read.
    """
    assert choice.weights
    tensors = (
        _download_imagenet(choice)
        if choice.weights == IMAGENET
        else _load_local(Path(choice.weights))
    )
    adapted = _adapt(model.state_dict(), tensors, choice)
    model.load_state_dict(adapted.tensors, strict=False)
    return adapted


def _adapt(expected: Weights, tensors: Weights, choice: Model) -> Adapted:
    """Return the weights under the keys of the network, whose own weights are `expected`.

    Raises SpecError if any but the last layer's do not match.
    """
    changes: list[str] = []
    tensors = _rename(expected, tensors, changes)
    ignored = (*AUXILIARY, *EXTRA_BUFFERS)
    tensors = {k: t for k, t in tensors.items() if k in expected or not k.startswith(ignored)}
    missing = [key for key in expected if key not in tensors]
    counters = [key for key in missing if key.endswith("num_batches_tracked")]
    if counters:
        changes.append(f"{len(counters)} num_batches_tracked are absent, and begin at 0")
    _fit_channels(expected, tensors, changes)
    head = _last_layer_keys(expected)
    new = [key for key in head if not _have_same_shape(expected, tensors, key)]
    mismatches = [
        f"{key}: {checkpoint.format_shape(tensors.get(key))} in the weights, "
        f"{checkpoint.format_shape(expected.get(key))} in the network"
        for key in sorted({*tensors, *expected} - {*new, *counters})
        if not _have_same_shape(expected, tensors, key)
    ]
    if mismatches:
        raise SpecError(
            f"{choice.weights} does not match the model: {'; '.join(mismatches[:5])} "
            f"({len(mismatches)} in all; only the last layer, {head[0].rpartition('.')[0]}, may "
            f"differ in its classes){PUBLISHED if choice.weights == IMAGENET else ''}",
            "model.weights",
        )
    return Adapted({k: t for k, t in tensors.items() if k not in new}, new, changes)


def _have_same_shape(one: Weights, other: Weights, key: str) -> bool:
    """Return whether both have a tensor of this key, with the same shape."""
    return key in one and key in other and one[key].shape == other[key].shape


def _rename(expected: Weights, tensors: Weights, changes: list[str]) -> dict[str, Tensor]:
    """Return the tensors without the key prefixes of torch.compile, DDP, Lightning and the like."""
    plain = {".".join(p for p in k.split(".") if p not in WRAPPERS): t for k, t in tensors.items()}
    if plain.keys() != tensors.keys():
        wrappers = (name for name in WRAPPERS if any(name in key.split(".") for key in tensors))
        changes.append(f"{', '.join(wrappers)} are stripped from the names")
    counts = Counter(
        key[: -len(name)] for key in plain for name in _suffixes(key) if name in expected
    )
    prefix, count = max(counts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if not prefix or count <= counts.get("", 0):
        return plain
    inside = {key.removeprefix(prefix): t for key, t in plain.items() if key.startswith(prefix)}
    outside = [key for key in plain if not key.startswith(prefix)]
    changes.append(f"{prefix!r} is stripped from the names")
    if outside:
        changes.append(f"{len(outside)} tensors outside it are not used: {', '.join(outside[:3])}")
    return inside


def _suffixes(key: str) -> list[str]:
    """Return all suffixes of a dotted name, the longest first."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _fit_channels(expected: Weights, tensors: dict[str, Tensor], changes: list[str]) -> None:
    """Adapt the first convolution to the network's number of input channels, in place.

    For grayscale images the weights are summed over the colors, which is equivalent to three equal
    channels. Weights of grayscale images are divided among the channels.
    """
    key = next((key for key, tensor in expected.items() if tensor.ndim == 4), None)
    if key is None or key not in tensors:
        return
    weight, shape = tensors[key], expected[key].shape
    if weight.ndim != 4 or weight.shape[1] == shape[1]:
        return
    if weight.shape[0] != shape[0] or weight.shape[2:] != shape[2:]:
        return
    if shape[1] == 1:
        tensors[key] = weight.sum(1, keepdim=True)
        change = "is summed over its channels, for gray images"
    elif weight.shape[1] == 1:
        tensors[key] = weight.expand(shape) / shape[1]
        change = "of gray images is shared among the channels"
    else:
        return
    changes.append(f"{key} {change}")


def _last_layer_keys(weights: Weights) -> list[str]:
    """Return the keys of the last layer."""
    layer = list(weights)[-1].rpartition(".")[0]
    return [key for key in weights if key.rpartition(".")[0] == layer]


def _load_local(path: Path) -> Weights:
    """Return the weights in a run folder or a file.

    Raises SpecError if the path is neither, DataError if its content is damaged or unsuitable.
    """
    if path.is_dir():
        best = checkpoint_folder.read_index(path / "checkpoints").get("best")
        if not best:
            raise SpecError(f"{path} is not a run folder with a best checkpoint", "model.weights")
        if problem := checkpoint_folder.verify_checkpoint(path / "checkpoints" / best):
            raise DataError(problem)
        return checkpoint.read_tensors(path / "checkpoints" / best / checkpoint_folder.MODEL)
    if not path.is_file():
        raise SpecError(f"there is no {path}; {IMAGENET} names torchvision's", "model.weights")
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path)
    return _find_tensors(_unpickle(path), path)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch may raise anything for invalid bytes
        raise DataError(
            f"{path} cannot be loaded: only tensors are allowed (weights_only): "
            f"{type(error).__name__}"
        ) from None


def _find_tensors(saved: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a saved object: the object itself, or a mapping of tensors in it.

    Of several, one with a common name is taken. Raises DataError if there is none, or several
    without a common name.
    """
    if _is_state_dict(saved):
        return {str(key): tensor for key, tensor in saved.items()}
    entries = saved if isinstance(saved, dict) else {}
    state_dicts = {str(key): value for key, value in entries.items() if _is_state_dict(value)}
    common = next((key for key in CONTAINERS if key in state_dicts), None)
    if common or len(state_dicts) == 1:
        return dict(state_dicts[common or next(iter(state_dicts))])
    for key in CONTAINERS:
        if isinstance(entries.get(key), dict):
            return _find_tensors(entries[key], path)
    if state_dicts:
        text = f"{path} holds several state dicts: {', '.join(state_dicts)}"
    else:
        text = f"{path} holds no state dict, a mapping of names to tensors"
    raise DataError(text)


def _is_state_dict(value: Any) -> bool:
    tensors = isinstance(value, dict) and all(isinstance(t, Tensor) for t in value.values())
    return bool(tensors and value)


def _download_imagenet(choice: Model) -> Weights:
    from torchvision import models

    name = torchvision_name(choice)
    weights = models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"could not download {weights.url}: {error}; model.weights may name a file instead"
        ) from None
