"""Test-time augmentation: the logits of an image averaged over it and its mirror image.

B images, C channels, H rows, W columns, K classes.
"""

import torch
from torch import Tensor, nn


class MirrorAverage(nn.Module):
    """A network whose logits are the mean of those of each image and of its mirror image.

    As in "ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky 2012,
    section 4.1, without its crops, and with logits in place of probabilities.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K) float32
        mirrored = self.network(torch.flip(x, [3]))
        return (self.network(x).float() + mirrored.float()) / 2


AUGMENTATIONS = {"horizontal_flip": MirrorAverage}


def with_tta(network: nn.Module, tta: str | None) -> nn.Module:
    """Return the network as it is evaluated: with the test-time augmentation of `train.tta`."""
    return AUGMENTATIONS[tta](network) if tta else network
