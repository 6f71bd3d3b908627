"""Count the floating-point operations of a network."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from raycnn import models
from raycnn.config.schema import Model
from raycnn.shape import Shape


def count_flops(choice: Model, shape: Shape, classes: int) -> int | None:
    """Return the operations for one image, two for each multiply-add, as torch counts them.

    The network runs on the meta device, which computes nothing; None where it cannot: a network
    of another package may need the values of its images.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            network = models.build_model(choice, shape, classes).eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, *shape))
    except (NotImplementedError, RuntimeError):
        return None
    return int(counter.get_total_flops())
