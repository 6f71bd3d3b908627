"""Grad-CAM heat maps (Selvaraju et al., ICCV 2017, arXiv:1610.02391)."""

import sys
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_SIDE = 4  # rows and columns of a feature map with useful resolution


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Return heat maps (B, H, W) in 0 to 1 of images (B, C, H, W) for `classes` (B,).

    Uses the last feature map of at least MIN_SIDE rows and columns; returns None if the model
    has none. It must be in evaluation mode, and stays in it.
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and min(out.shape[2:]) >= MIN_SIDE:
            maps[:] = [out]

    with torch.enable_grad(), ExitStack() as hooks:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and it takes long to import
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(keep))
        # With a gradient on the images this works for a fully frozen network too.
        logits = model(images.detach().requires_grad_())
        if not maps or maps[0].shape[0] != len(images):
            return None
        chosen = logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, maps[0])
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * maps[0].detach()).sum(1, keepdim=True))
    heat = F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
