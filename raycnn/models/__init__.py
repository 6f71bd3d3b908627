"""Networks by name. A builder takes (shape, classes, *, options) and returns a module.

The module maps images (B, C, H, W) to logits (B, K).
"""

import torch
from torch import nn

from raycnn.config.components import MODELS
from raycnn.config.schema import Model
from raycnn.errors import SpecError, unknown
from raycnn.models.blocks import TooSmall
from raycnn.shape import Shape

MAX_SIDE = 512  # pixels: the largest side that the search for the minimum tries


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def build_model(choice: Model, shape: Shape, classes: int) -> nn.Module:
    """Return a network with random weights, whose frozen parameters take no gradients.

    Raises SpecError if the images are too small for it, or every parameter is frozen.
    """
    options = MODELS.options(choice)
    try:
        model = MODELS.builder(choice.name)(shape, classes, **options)
    except TooSmall:
        minimum = _min_image_size(choice, shape.channels, classes)
        raise SpecError(
            f"{choice.name} needs images of at least {minimum}x{minimum}, not "
            f"{shape.height}x{shape.width}: `data.transforms: [{{name: resize, size: {minimum}}}]` "
            "enlarges them",
            "model",
        ) from None
    for prefix in choice.freeze:
        _freeze(model, prefix)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError("nothing is left to train", "model.freeze")
    return model


def _freeze(model: nn.Module, prefix: str) -> None:
    parameters = dict(model.named_parameters())
    frozen = [p for key, p in parameters.items() if f"{key}.".startswith(f"{prefix}.")]
    if not frozen:
        parts = {key.split(".")[0] for key in parameters}
        raise SpecError(unknown("part of the network", prefix, parts), "model.freeze")
    for parameter in frozen:
        parameter.requires_grad_(False)


def begin_training(model: nn.Module) -> None:
    """Set training mode, except for frozen batch norms, whose running statistics stay fixed."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.train(module.weight.requires_grad)


def _min_image_size(choice: Model, channels: int, classes: int) -> int:
    """Return the smallest side, in pixels, of square images that a network accepts."""
    for size in range(1, MAX_SIDE):
        try:
            with torch.device("meta"):  # the meta device allocates and computes nothing
                MODELS.build(choice, Shape(channels, size, size), classes)
            return size
        except TooSmall:
            continue
    return MAX_SIDE
