"""The transforms of a job, applied to whole batches on the device.

Each image's random numbers are a function of (seed, epoch, sample), by `rng.uniform`, so the
augmentation does not depend on which worker or batch an image is in.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycnn.config.components import TRANSFORMS
from raycnn.config.schema import ComponentConfig
from raycnn.data.transforms import mix
from raycnn.data.transforms.base import ImageTransform, Transform
from raycnn.data.transforms.mix import Mix
from raycnn.errors import SpecError
from raycnn.runtime import rng
from raycnn.runtime.device import layout
from raycnn.shape import Shape


class Pipeline:
    """The transforms of a job and its normalization, for training or for evaluation."""

    def __init__(self, transforms: Sequence[Transform], mean: list[float], std: list[float]):
        self.transforms, self.mean, self.std = transforms, mean, std
        self.image_transforms = [each for each in transforms if isinstance(each, ImageTransform)]
        self.mixes = [each for each in transforms if isinstance(each, Mix)]
        self._scales: tuple[Tensor, Tensor] | None = None

    def evaluation(self) -> "Pipeline":
        """Return the pipeline for evaluation, without random transforms."""
        transforms = (transform.evaluation() for transform in self.transforms)
        return Pipeline([each for each in transforms if each], self.mean, self.std)

    @property
    def numbers(self) -> int:
        """The number of random numbers per image: first the transforms', then the mixes'."""
        return sum(each.numbers for each in self.image_transforms) + mix.count(self.mixes)

    def random_numbers(
        self, seed: int, epoch: int, samples: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return the random numbers (samples, self.numbers) that augment samples in an epoch."""
        numbers = rng.uniform(seed, epoch, samples, self.numbers)
        if self.mixes:
            mix.to_beta(self.mixes, numbers[:, -mix.count(self.mixes) :])
        return numbers

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return normalized (B, C, H', W') float32 of (B, C, H, W) uint8 and (B, self.numbers)."""
        start = 0
        for transform in self.image_transforms:
            stop = start + transform.numbers
            images = transform(images, numbers[:, start:stop])
            start = stop
        return self._normalize(images)

    def mixed(self, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each of (B + 1, C, H, W) normalized images with the next: see `mix.mixed`."""
        return mix.mixed(self.mixes, images, numbers[:, -mix.count(self.mixes) :])

    def _normalize(self, images: Tensor) -> Tensor:
        mean, std = self._scale(images.device)
        # Write into a new tensor with an explicit layout: the strides of a single-channel tensor
        # are ambiguous, and a convolution may choose the slower layout.
        floats = torch.empty(
            images.shape, device=images.device, memory_format=layout(images.device, None)
        )
        # Convert first: an operation on two types is not vectorized on a CPU.
        return floats.copy_(images).sub_(mean).div_(std)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and std (1, C, 1, 1), cached per device, since each copy synchronizes."""
        if self._scales is None or self._scales[0].device != device:
            rows = torch.tensor([self.mean, self.std]).mul_(255).to(device)
            mean, std = rows.view(2, 1, -1, 1, 1).unbind()
            self._scales = mean, std
        return self._scales


def shape_after(choices: Sequence[ComponentConfig], shape: Shape) -> Shape:
    """Return the shape of an image after transforms.

    Raises SpecError if a transform does not fit the shape, or another follows a mix.
    """
    last = ""
    for index, choice in enumerate(choices):
        try:
            transform = TRANSFORMS.build(choice)
            if last and not isinstance(transform, Mix):
                raise SpecError(
                    f"{choice.name} follows {last}: transforms that mix images come last",
                    "data.transforms",
                )
            shape = transform.shape(shape)
        except SpecError as error:
            option = error.key.removeprefix("data.transforms")
            raise SpecError(error.message, f"data.transforms.{index}{option}") from None
        last = choice.name if isinstance(transform, Mix) else ""
    return shape
