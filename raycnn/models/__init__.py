"""The networks by name. A builder takes (shape, classes, *, options) and maps images to logits."""

import torch
from torch import nn

from raycnn.config.components import MODELS
from raycnn.config.schema import Model
from raycnn.errors import SpecError, unknown
from raycnn.models.blocks import TooSmall
from raycnn.shape import Shape

LARGEST = 512


def build_model(choice: Model, shape: Shape, classes: int) -> nn.Module:
    """A network with fresh weights, its frozen parts without gradients.

    Raises SpecError when the images are too small for it, or nothing is left to train.
    """
    options = MODELS.options(choice)
    try:
        model = MODELS.builder(choice.name)(shape, classes, **options)
    except TooSmall:
        least = _least(choice, shape.channels, classes)
        raise SpecError(
            f"{choice.name} needs images of at least {least}x{least}, not "
            f"{shape.height}x{shape.width}: `data.transforms: [{{name: resize, size: {least}}}]` "
            "enlarges them",
            "model",
        ) from None
    for prefix in choice.freeze:
        _freeze(model, prefix)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError("nothing is left to train", "model.freeze")
    return model


def _freeze(model: nn.Module, prefix: str) -> None:
    named = dict(model.named_parameters())
    chosen = [p for key, p in named.items() if f"{key}.".startswith(f"{prefix}.")]
    if not chosen:
        parts = {key.split(".")[0] for key in named}
        raise SpecError(unknown("part of the network", prefix, parts), "model.freeze")
    for parameter in chosen:
        parameter.requires_grad_(False)


def begin_training(model: nn.Module) -> None:
    """Training mode, but for batch norms that are frozen: they keep the statistics they have."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.train(module.weight.requires_grad)


def _least(choice: Model, channels: int, classes: int) -> int:
    """The smallest square image that a network can take."""
    for size in range(1, LARGEST):
        try:
            with torch.device("meta"):  # no memory, no arithmetic
                MODELS.build(choice, Shape(channels, size, size), classes)
            return size
        except TooSmall:
            continue
    return LARGEST
