"""The teacher of a job with distillation: the best weights of another run."""

from collections.abc import Sequence
from pathlib import Path

import torch

from raycnn.config.schema import JobSpec
from raycnn.data.splits import Splits
from raycnn.errors import SpecError
from raycnn.runs.directory import Run
from raycnn.shape import Shape
from raycnn.training import checkpoint_folder
from raycnn.training.distillation import TEACHER, Teacher, build_teacher, load_teacher


def pin_teacher(job: JobSpec) -> JobSpec:
    """Return the job with the folder or URI of its teacher instead of a name.

    A later run of that name then does not replace it, and workers find it from any folder.
    """
    if not job.train.distillation:
        return job
    named = job.train.distillation.model_copy(update={"teacher": str(_find(job).location)})
    return job.model_copy(update={"train": job.train.model_copy(update={"distillation": named})})


def check_teacher(job: JobSpec, classes: Sequence[str], shape: Shape) -> None:
    """Check that a job's teacher exists, and has the job's classes and channels.

    Raises SpecError if not, DataError if its checkpoint is damaged.
    """
    if job.train.distillation:
        metadata = checkpoint_folder.read_state(_weights(job))["about"]
        with torch.device("meta"):
            build_teacher(metadata, job, classes, shape)


def teacher_digest(job: JobSpec) -> str | None:
    """Return the SHA-256 of the weights of a job's teacher; None without one."""
    if not job.train.distillation:
        return None
    saved = checkpoint_folder.read_state(_weights(job))
    return str(saved["files"][checkpoint_folder.MODEL]["sha256"])


def load_job_teacher(job: JobSpec, splits: Splits, device: torch.device) -> Teacher | None:
    """Return a job's teacher on a device; None without one.

    Raises the same errors as `check_teacher`.
    """
    return load_teacher(_weights(job), job, splits, device) if job.train.distillation else None


def _weights(job: JobSpec) -> Path:
    return _find(job).weights("best")


def _find(job: JobSpec) -> Run:
    assert job.train.distillation
    try:
        return Run.find(job.train.distillation.teacher, job.storage.path, trained=True)
    except SpecError as error:
        raise SpecError(error.message, TEACHER) from None
