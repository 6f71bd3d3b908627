"""The networks by name. A builder takes (shape, classes, *, options) and maps images to logits."""

import torch
from torch import nn

from raycnn.catalogue import Catalogue
from raycnn.errors import SpecError
from raycnn.models.alexnet import alexnet
from raycnn.models.blocks import TooSmall
from raycnn.models.lenet import lenet
from raycnn.shape import Shape
from raycnn.spec import Choice

MODELS: Catalogue[nn.Module] = Catalogue(
    "model", "model", {"alexnet": alexnet, "lenet": lenet}, group="raycnn.models"
)

LARGEST = 512


def build(choice: Choice, shape: Shape, classes: int) -> nn.Module:
    """A network with fresh weights. Raises SpecError when the images are too small for it."""
    options = MODELS.options(choice)
    try:
        return MODELS.builder(choice.name)(shape, classes, **options)
    except TooSmall:
        least = _least(choice, shape.channels, classes)
        raise SpecError(
            f"{choice.name} needs images of at least {least}x{least}, not "
            f"{shape.height}x{shape.width}: `data.transforms: [{{name: resize, size: {least}}}]` "
            "enlarges them",
            "model",
        ) from None


def _least(choice: Choice, channels: int, classes: int) -> int:
    """The smallest square image that a network can take."""
    for size in range(1, LARGEST):
        try:
            with torch.device("meta"):  # no memory, no arithmetic
                MODELS.build(choice, Shape(channels, size, size), classes)
            return size
        except TooSmall:
            continue
    return LARGEST
