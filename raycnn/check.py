"""A job against reality before it starts: names, options, shapes, data, devices, storage.

What can be known without reading images comes first, so that a slip in the spec costs no waiting.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raycnn import device, models, pretrained
from raycnn.data import shape_seen, source_of
from raycnn.data.augment import TRANSFORMS
from raycnn.data.source import File, Source, files_of
from raycnn.errors import Unfit
from raycnn.optim import OPTIMIZERS, SCHEDULES
from raycnn.shape import Shape
from raycnn.spec import JobSpec
from raycnn.step import class_weights


@dataclass(frozen=True)
class Found:
    """What a check came to: for people to read."""

    shape: Shape
    classes: int
    parameters: int
    files: list[File]
    kind: str


def check(job: JobSpec, *, elsewhere: bool = False) -> Found:
    """Raises SpecError, DataError or Unfit for the first thing that cannot work.

    With `elsewhere` the devices may be another machine's, and are not looked for here.
    """
    source, shape, model = check_settings(job)
    files = files_of(source)
    writable(Path(job.storage.path).absolute())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = job.workers.device if elsewhere else device.find(job.workers.device).name
    with job.located():
        device.check_training(job.train, kind)
    return Found(shape, len(source.classes), parameters, files, kind)


def check_settings(job: JobSpec) -> tuple[Source, Shape, nn.Module]:
    """What the spec says, without a look at data or devices; the model is on the meta device."""
    with job.located():
        for choice in job.data.transforms:
            TRANSFORMS.options(choice)
        source = source_of(job.data)
        shape = shape_seen(job.data, source)
        with torch.device("meta"):
            model = models.build(job.model, shape, len(source.classes))
            OPTIMIZERS.build(job.optimizer, model.named_parameters())
        pretrained.check(model, job.model)
        class_weights(job.train.class_weights, np.ones(len(source.classes), np.int64))
        SCHEDULES.build(job.schedule, job.train.epochs)
    return source, shape, model


def writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, can be written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise Unfit(f"storage.path: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Unfit(f"storage.path: no permission to write to {there}")
