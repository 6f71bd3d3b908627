"""A job against reality before it starts: names, options, shapes, data, devices, storage.

What can be known without reading images comes first, so that a slip in the spec costs no waiting.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raycnn import models
from raycnn.config.components import OPTIMIZERS, SCHEDULES, TRANSFORMS
from raycnn.config.schema import JobSpec
from raycnn.data.sources.base import File, Source, files_of
from raycnn.data.splits import examine, shape_seen, source_of
from raycnn.errors import EnvironmentUnavailable, SpecError
from raycnn.filesystem import is_uri
from raycnn.paths import cache_folder
from raycnn.runs.storage import check_reachable
from raycnn.runs.trackers import check_installed
from raycnn.runtime import device
from raycnn.shape import Shape
from raycnn.training import pretrained
from raycnn.training.step import class_weights

KEPT = 4  # checkpoints at once: the last, the one before, the best, and the one being written
MB = 1e6


@dataclass(frozen=True)
class CheckReport:
    """What a check came to: for people to read."""

    shape: Shape
    classes: int
    parameters: int
    files: list[File]
    kind: str
    warnings: list[str]
    """What a person should know of the data: what is ignored, converted, or cannot be learned."""


def check(job: JobSpec, *, elsewhere: bool = False, checkpoints: Path | None = None) -> CheckReport:
    """Raises SpecError, DataError or EnvironmentUnavailable for the first thing that cannot work.

    With `elsewhere` the devices may be another machine's, and are not looked for here. A run that
    goes on has its `checkpoints` on the disk already.
    """
    source, shape, model = check_settings(job)
    files = files_of(source)
    if not elsewhere:
        check_installed(job.trackers)
    warnings = examine(source)
    if is_uri(job.storage.path):
        check_reachable(job.storage.path)
    else:
        writable(Path(job.storage.path).absolute())
    roomy(checkpoints or _working_folder(job), job, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = job.workers.device if elsewhere else device.find(job.workers.device).name
    with job.located():
        device.check_training(job.train, kind)
    return CheckReport(shape, len(source.classes), parameters, files, kind, warnings)


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
            _check_stages(job, model)
        pretrained.check(model, job.model)
        class_weights(job.train.class_weights, np.ones(len(source.classes), np.int64))
        SCHEDULES.build(job.schedule, job.train.epochs)
    return source, shape, model


def _check_stages(job: JobSpec, model: nn.Module) -> None:
    for index, stage in enumerate(job.stages):
        try:
            OPTIMIZERS.build(job.after(stage.epoch).optimizer, model.named_parameters())
        except SpecError as error:
            raise SpecError(str(error), f"stages.{index}.changes") from None


def roomy(folder: Path, job: JobSpec, model: nn.Module) -> None:
    """Raises EnvironmentUnavailable when the checkpoints of the model do not fit in the folder."""
    optimizer = OPTIMIZERS.build(job.optimizer, model.named_parameters())
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in optimizer.parameters.values())
    one = weights + trained * (len(optimizer.kept) + bool(job.train.ema))
    there = nearest(folder)
    held = sum(path.stat().st_size for path in folder.glob("[0-9]*-[0-9]*/*"))
    free = shutil.disk_usage(there).free + held
    if KEPT * one > free:
        raise EnvironmentUnavailable(
            f"storage.path: {there} has {free / MB:,.1f} MB for checkpoints, and they take "
            f"{KEPT * one / MB:,.1f} MB: {KEPT} of up to {one / MB:,.1f} MB"
        )


def _working_folder(job: JobSpec) -> Path:
    """Where its checkpoints are written first."""
    return cache_folder() if is_uri(job.storage.path) else Path(job.storage.path).absolute()


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, can be written to."""
    there = nearest(folder)
    if not there.is_dir():
        raise EnvironmentUnavailable(f"storage.path: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentUnavailable(f"storage.path: no permission to write to {there}")
