"""A job against reality before it starts: names, options, shapes, data, devices, storage.

What can be known without reading images comes first, so that a slip in the spec costs no waiting.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from raycnn import device, models
from raycnn.data import shape_seen, source_of
from raycnn.data.augment import TRANSFORMS
from raycnn.errors import DataError, SpecError, Unfit
from raycnn.optim import OPTIMIZERS, SCHEDULES
from raycnn.shape import Shape
from raycnn.spec import JobSpec


@dataclass(frozen=True)
class Found:
    """What a check came to: for people to read."""

    shape: Shape
    classes: int
    parameters: int
    files: list[Path]
    kind: str


def check(job: JobSpec, *, here: bool = True) -> Found:
    """Raises SpecError, DataError or Unfit for the first thing that cannot work.

    With `here` false the devices are another machine's, and are not looked at.
    """
    with job.located():
        for choice in job.data.transforms:
            TRANSFORMS.options(choice)
        source = source_of(job.data)
        shape = shape_seen(job.data, source)
        with torch.device("meta"):
            model = models.build(job.model, shape, len(source.classes))
            OPTIMIZERS.build(job.optimizer, model.named_parameters())
        SCHEDULES.build(job.schedule, job.train.epochs)
        if job.data.normalize and len(job.data.normalize.mean) != source.shape.channels:
            raise SpecError(f"images have {source.shape.channels} channels", "data.normalize.mean")
        kind = device.find(job.workers.device).name if here else job.workers.device
        if here:
            device.check_precision(job.train.precision, torch.device(kind))
    files = _readable(source.files())
    _writable(Path(job.storage.path).absolute())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Found(shape, len(source.classes), parameters, files, kind)


def _readable(files: list[Path]) -> list[Path]:
    for path in files:
        if not os.access(path, os.R_OK):
            raise DataError(f"no permission to read {path}")
    return files


def _writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, can be written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise Unfit(f"storage.path: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Unfit(f"storage.path: no permission to write to {there}")
