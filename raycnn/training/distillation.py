"""Knowledge distillation: train a network on the outputs of a trained one, its teacher.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015 (arXiv:1503.02531).
B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycnn import models
from raycnn.config.load import saved_job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.sources.base import listed
from raycnn.data.splits import Splits
from raycnn.errors import DataError, SpecError
from raycnn.runtime import distributed
from raycnn.runtime.device import layout
from raycnn.shape import Shape
from raycnn.training import checkpoint, checkpoint_folder
from raycnn.training.callbacks import TeacherLoaded

TEACHER = "train.distillation.teacher"  # key of the teacher in the spec


@dataclass(frozen=True)
class Teacher:
    """A frozen network in evaluation mode, which gets the same augmented batches as its student."""

    network: nn.Module
    shape: Shape
    """Shape of its input images; batches of another size are resized."""
    scale: Tensor
    """Factor (1, C, 1, 1) that, with `offset`, turns the student's normalization into its own."""
    offset: Tensor
    """Offset (1, C, 1, 1), added after `scale`."""
    loaded: TeacherLoaded
    """The event that describes it."""

    def set_layout(self, channels_last: bool | str | None) -> None:
        """Convert the weights to the memory format of `train.channels_last`."""
        self.network.to(memory_format=layout(self.scale.device, channels_last))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) for images (B, C, H, W) as the student gets them."""
        images = torch.addcmul(self.offset, images, self.scale)
        size = (self.shape.height, self.shape.width)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network(images)


def load_teacher(path: Path, job: JobSpec, splits: Splits, device: torch.device) -> Teacher:
    """Return the teacher in the checkpoint folder `path` for a job, on a device.

    Raises SpecError if its classes or channels are not the job's.
    """
    saved = checkpoint_folder.read_state(path)
    metadata, student = saved["about"], splits.pipeline
    network = build_teacher(metadata, job, splits.classes, splits.shape)
    checkpoint.load_weights(network, path)
    network.to(device).to(memory_format=layout(device, job.train.channels_last))
    mean, std, teacher_mean, teacher_std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1)
        for values in (student.mean, student.std, metadata["mean"], metadata["std"])
    )
    shape = Shape(*metadata["shape"])
    assert job.train.distillation
    loaded = TeacherLoaded(
        teacher=job.train.distillation.teacher,
        sha256=saved["files"][checkpoint_folder.MODEL]["sha256"],
        model=metadata["spec"]["model"]["name"],
        epoch=saved["epoch"],
        size=None if shape == splits.shape else [shape.height, shape.width],
    )
    return Teacher(
        network=network.eval().requires_grad_(False), shape=shape,
        scale=std / teacher_std, offset=(mean - teacher_mean) / teacher_std, loaded=loaded,
    )  # fmt: skip


def agree_on_teacher(load: Callable[[], Teacher]) -> Teacher:
    """Load the teacher on every worker. Raises DataError if their weights differ."""
    teacher = distributed.raise_on_any_rank(load)
    expected = distributed.broadcast_from_rank_zero(lambda: teacher.loaded.sha256)

    def check() -> None:
        if teacher.loaded.sha256 != expected:
            rank = distributed.rank()
            raise DataError(f"{teacher.loaded.teacher} on rank {rank} is not the run on rank 0")

    distributed.raise_on_any_rank(check)
    return teacher


def build_teacher(
    metadata: dict[str, Any], job: JobSpec, classes: Sequence[str], shape: Shape
) -> nn.Module:
    """Return the network that a checkpoint's metadata describes, without its weights.

    Raises SpecError if its classes or channels are not those of the job.
    """
    assert job.train.distillation
    name, teacher_classes = job.train.distillation.teacher, metadata["classes"]
    if missing := [label for label in classes if label not in teacher_classes]:
        raise SpecError(f"{name} was not trained on the classes {listed(missing)}", TEACHER)
    if extra := [label for label in teacher_classes if label not in classes]:
        raise SpecError(f"{name} has classes that the job does not have: {listed(extra)}", TEACHER)
    if list(classes) != teacher_classes:
        raise SpecError(f"{name} has the same classes in another order", TEACHER)
    teacher_shape = Shape(*metadata["shape"])
    if teacher_shape.channels != shape.channels:
        raise SpecError(
            f"{name} takes images of {teacher_shape.channels} channels, and the job's have "
            f"{shape.channels}",
            TEACHER,
        )
    model = saved_job_from_tree(metadata["spec"]).model
    return models.build_model(model, teacher_shape, len(teacher_classes))


def soft_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the summed KL divergence () of logits (B, K) from the teacher's, times T².

    Both are softened by the temperature T; the factor keeps the size of the gradients (section 2).
    """
    student, teacher = (
        F.log_softmax(each.float() / temperature, 1) for each in (logits, teacher_logits)
    )
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
