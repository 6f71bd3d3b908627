"""Whether a run can be resumed as a job asks: some settings are fixed once it has begun."""

from functools import reduce
from typing import Any

from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, SpecError
from raycnn.runs.directory import Run
from raycnn.training import checkpoint
from raycnn.training.callbacks import VersionDiffers

IMMUTABLE_ON_RESUME = [
    "name",
    "seed",
    "data",
    "model",
    "optimizer.name",
    "train.batch_size",
    "train.balanced",
]
READING = {"root", "download", "cache", "max_bad"}  # of `data`: where and how it is read


def validate_resume(run: Run, job: JobSpec) -> int:
    """Return how many epochs the run has done.

    Raises SpecError when the job differs from the run's in what is fixed, or ends before what has
    begun.
    """
    path, _ = run.newest()
    if not path:
        return 0
    saved = checkpoint.read_state(path)
    check_same_job(saved, job.tree())
    begun = _epochs_begun(saved)
    if job.train.epochs < begun:
        raise SpecError(f"is {job.train.epochs}, and {begun} have begun", "train.epochs")
    return int(saved["epoch"])


def check_same_job(saved: dict[str, Any], spec: dict[str, Any]) -> None:
    """Raise SpecError unless a job may resume from a checkpoint's saved state."""
    # The defaults of keys that are newer than the checkpoint are filled in.
    before = job_from_tree(saved["about"]["spec"]).tree()
    begun = _epochs_begun(saved)
    for path in ("stages", *IMMUTABLE_ON_RESUME):
        if _fixed_part(before, path, begun) != _fixed_part(spec, path, begun):
            raise SpecError("cannot change once the run has begun: train it as a new job", path)


def check_same_data(saved: dict[str, Any], fingerprint: str) -> None:
    """Raise DataError when the images are not those that the checkpoint was trained on."""
    if saved["about"]["data"] != fingerprint:
        raise DataError("the images or labels are not the ones this run was begun with")


def version_differences(saved: dict[str, Any], current: dict[str, str]) -> list[VersionDiffers]:
    """Return an event for each package whose version is not the checkpoint's."""
    return [
        VersionDiffers(package=name, saved=version, current=current[name])
        for name, version in saved["about"]["versions"].items()
        if version != current[name]
    ]


def _fixed_part(spec: dict[str, Any], path: str, begun: int) -> Any:
    """Return what must stay as it is of a key, once so many epochs have begun."""
    value: Any = reduce(dict.__getitem__, path.split("."), spec)
    if path == "stages":
        return [stage for stage in value if stage["epoch"] < begun]
    if path == "data":
        return {key: part for key, part in value.items() if key not in READING}
    return value


def _epochs_begun(saved: dict[str, Any]) -> int:
    return int(saved["epoch"] + (saved["step"] > 0))
