"""Check whether a job can be trained: its components, then data, storage and devices.

Checks that need no images come first, so that errors in the spec are reported at once.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raycnn import models
from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
from raycnn.config.schema import JobSpec, OptimizerConfig
from raycnn.data.sources.base import File, Source, files_of, multi_label
from raycnn.data.splits import check_single_label, check_source, input_shape, source_of
from raycnn.errors import EnvironmentUnavailable, SpecError
from raycnn.filesystem import is_uri
from raycnn.models.weights import IMAGENET
from raycnn.paths import cache_folder
from raycnn.runs.directory import Run
from raycnn.runs.remote.storage import check_reachable
from raycnn.runs.teacher import check_teacher, pin_teacher
from raycnn.runs.trackers import check_installed
from raycnn.runtime import device
from raycnn.shape import Shape
from raycnn.training import checkpoint_folder, pretrained
from raycnn.training.optim import Optimizer, build_optimizer
from raycnn.training.step import class_weights

CHECKPOINTS = 4  # maximum number on disk at once: last, previous, best, and one being written
MB = 1e6  # bytes


@dataclass(frozen=True)
class ResolvedJob:
    """The components that a job names, built and checked against one another."""

    job: JobSpec
    source: Source
    shape: Shape
    """Shape of the network's input images."""
    model: nn.Module
    """The network on the meta device, without memory for its weights."""
    optimizer: Optimizer

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.source.classes

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return models.count_parameters(self.model)


@dataclass(frozen=True)
class CheckedJob(ResolvedJob):
    """A resolved job whose data, storage and devices are available.

    The job names a teacher by its folder or URI, even if the spec names the job that trained it.
    """

    files: list[File]
    """Data files that are read."""
    kind: str
    """Device kind."""
    warnings: list[str]
    """Warnings about the data: what is ignored, converted, or cannot be learned."""


def check_job(job: JobSpec, *, remote: bool = False, run: Run | None = None) -> CheckedJob:
    """Resolve a job, and check that its data, storage and devices are available.

    With `remote` it trains on other machines, whose devices are not checked here. `run` is a run to
    resume: its own place is checked, wherever it was created, and not its initial weights, which
    are not read again. Raises SpecError, DataError or EnvironmentUnavailable for the first problem.
    """
    begins = not (run and checkpoint_folder.read_index(run.checkpoints))
    resolved = resolve_job(job, initial_weights=begins)
    files = files_of(resolved.source)
    if not remote:
        check_installed(job.trackers)
    warnings = check_source(resolved.source)
    location = str(run.location) if run else job.storage.path
    if is_uri(location):
        check_reachable(location)
    else:
        check_writable(Path(location).absolute())
    check_disk_space(run.checkpoints if run else _working_folder(job), resolved)
    kind = job.workers.device if remote else device.find(job.workers.device).name
    with job.located():
        device.check_training(job.train, kind)
        check_teacher(job, resolved.classes, resolved.shape)
        resolved = replace(resolved, job=pin_paths(job) if begins else pin_teacher(job))
    return CheckedJob(**vars(resolved), files=files, kind=kind, warnings=warnings)


def pin_paths(job: JobSpec) -> JobSpec:
    """Return the job with the folder of its teacher, and the absolute path of its initial weights.

    Workers then find them from any working folder.
    """
    weights = job.model.weights
    if weights and weights != IMAGENET:
        job = job.change({"model.weights": os.path.abspath(weights)})
    return pin_teacher(job)


def resolve_job(job: JobSpec, *, initial_weights: bool = True) -> ResolvedJob:
    """Build and check the components that a job names, without checking data or devices.

    Every command validates jobs with this function. Without `initial_weights` those that the job
    names are not read. Raises SpecError with the file and line of the key at fault, DataError if a
    source that must be opened to know its shape is missing.
    """
    check_settings(job)
    with job.located():
        source = source_of(job.data)
        check_single_label(job, multi_label(source))
        shape = input_shape(job.data, source)
        with torch.device("meta"):
            model = models.build_model(job.model, shape, len(source.classes))
            optimizer = _build_optimizers(
                job, lambda choice: build_optimizer(choice, model.named_parameters())
            )
        if initial_weights:
            pretrained.check_weights(model, job.model)
        class_weights(job.train.class_weights, np.ones(len(source.classes), np.int64))
    return ResolvedJob(job, source, shape, model, optimizer)


def resolve_remote_job(job: JobSpec) -> ResolvedJob:
    """Resolve a job for another machine, which has the files of its initial weights."""
    return resolve_job(job, initial_weights=job.model.weights == IMAGENET)


def check_settings(job: JobSpec) -> None:
    """Check what needs neither data nor a network: names, options, stages, schedule, patience.

    Raises SpecError with the file and line of each key at fault.
    """
    problems = [
        *_data_problems(job),
        *MODELS.problems(job.model),
        *OPTIMIZERS.problems(job.optimizer),
        *SCHEDULES.problems(job.schedule),
    ]
    if problems:
        raise job.located_error(problems)
    with job.located():
        _build_optimizers(
            job, lambda choice: OPTIMIZERS.build(choice, [("weight", nn.Parameter(torch.zeros(1)))])
        )
        SCHEDULES.build(job.schedule, job.train.epochs)
        if job.train.patience and not (job.data.val or job.data.fold):
            raise SpecError("needs images that are held out: data.val is 0", "train.patience")


def check_data_settings(job: JobSpec) -> None:
    """Check the names and options of the data set and the transforms, as `check_settings` does."""
    if problems := _data_problems(job):
        raise job.located_error(problems)


def _data_problems(job: JobSpec) -> list[SpecError]:
    problems = DATASETS.problems(job.data)
    for index, choice in enumerate(job.data.transforms):
        problems += TRANSFORMS.problems(choice, f"data.transforms.{index}")
    return problems


def _build_optimizers(job: JobSpec, build: Callable[[OptimizerConfig], Optimizer]) -> Optimizer:
    """Return the optimizer of a job; those of its stages are built to check them."""
    optimizer = build(job.optimizer)
    for index, stage in enumerate(job.stages):
        try:
            build(job.after(stage.epoch).optimizer)
        except SpecError as error:
            raise SpecError(str(error), f"stages.{index}.changes") from None
    return optimizer


def check_disk_space(folder: Path, resolved: ResolvedJob) -> None:
    """Raise EnvironmentUnavailable if a job's checkpoints do not fit on the folder's disk."""
    optimizer = resolved.optimizer
    weights = sum(tensor.nbytes for tensor in resolved.model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in optimizer.parameters.values())
    size = weights + trained * (len(optimizer.state) + bool(resolved.job.train.ema))
    existing = nearest_existing(folder)
    reusable = sum(path.stat().st_size for path in folder.glob("[0-9]*-[0-9]*/*"))
    free = shutil.disk_usage(existing).free + reusable
    if CHECKPOINTS * size > free:
        raise EnvironmentUnavailable(
            f"storage.path: {existing} has {free / MB:,.1f} MB for checkpoints, and they take "
            f"{CHECKPOINTS * size / MB:,.1f} MB: {CHECKPOINTS} of up to {size / MB:,.1f} MB"
        )


def _working_folder(job: JobSpec) -> Path:
    """Return the local folder that checkpoints are written to first."""
    return cache_folder() if is_uri(job.storage.path) else Path(job.storage.path).absolute()


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Raise EnvironmentUnavailable unless the folder, or its existing parent, is writable."""
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise EnvironmentUnavailable(f"storage.path: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise EnvironmentUnavailable(f"storage.path: no permission to write to {existing}")
