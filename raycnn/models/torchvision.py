"""torchvision's classifiers, as `torchvision:NAME`, with random weights.

Their dropout is replaced by raycnn's, which does not depend on the number of workers, and their
batch norm by raycnn's, which accepts a last batch of one image. Stochastic depth (EfficientNet,
ConvNeXt, Swin) is not replaced: it draws the same values on every worker.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial

import torch
from torch import nn

from raycnn.errors import SpecError, unknown
from raycnn.models.blocks import BatchNorm
from raycnn.models.dropout import Dropout
from raycnn.shape import Shape

AUXILIARY = {"googlenet", "inception_v3"}  # networks with auxiliary heads, used only in training


@cache  # the same builder each time: options are cached by their builder
def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return the builder of a torchvision network. Raises SpecError for an unknown name."""
    from torchvision import models  # slow to import

    names = models.list_models(module=models)
    if name not in names:
        raise SpecError(unknown("torchvision model", name, names), "model.name")
    return partial(build_classifier, name)


def build_classifier(name: str, shape: Shape, classes: int) -> nn.Module:
    """Return a torchvision network with raycnn's dropout and batch norm.

    Raises SpecError for images that the network does not accept.
    """
    model = plain_classifier(name, classes)
    for parent in [*model.modules()]:
        for key, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, key, Dropout(child.p))
            elif type(child) is nn.BatchNorm2d:
                child.__class__ = BatchNorm
    _replace_first_conv(model, shape.channels)
    _check_accepts(name, model, shape)
    return model


def plain_classifier(name: str, classes: int = 1000) -> nn.Module:
    """Return the unmodified torchvision network, with random weights."""
    from torchvision import models

    options = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    # RegNet's constructor reads values of tensors, which the meta device does not have.
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        return models.get_model(name, weights=None, num_classes=classes, **options)


def _replace_first_conv(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one with this number of input channels."""
    key, first = next((k, m) for k, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return
    parent = model.get_submodule(key.rpartition(".")[0])
    options = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
    conv = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **options)
    setattr(parent, key.rpartition(".")[2], conv)


@torch.no_grad()
def _check_accepts(name: str, model: nn.Module, shape: Shape) -> None:
    """Raise SpecError unless the network accepts an image of this shape."""
    device = next(model.parameters()).device  # the meta device if a job is only checked
    image = torch.zeros(1, *shape, device=device)
    try:
        model.eval()(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        message = f"torchvision:{name} cannot take {shape} images: {error}"
        raise SpecError(message, "model") from None
    model.train()
