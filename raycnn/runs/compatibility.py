"""Check whether a run can be resumed with a job: some settings are fixed once it has started."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

from raycnn.config.load import saved_job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.images.fingerprint import may_be_same
from raycnn.errors import DataError, SpecError
from raycnn.runs.directory import Run
from raycnn.runs.teacher import teacher_digest
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import VersionDiffers
from raycnn.training.distillation import TEACHER

IMMUTABLE_ON_RESUME = [
    "name",
    "seed",
    "data",
    "model",
    "optimizer.name",
    "train.batch_size",
    "train.balanced",
    "train.tta",
]
READING_KEYS = {"root", "download", "cache", "max_bad"}
"""Keys of `data` that change how the images are read, but not the images."""


def validate_resume(run: Run, job: JobSpec) -> int:
    """Return the number of completed epochs of the run.

    Raises SpecError if the job changes a fixed setting, or has fewer epochs than have started.
    """
    path, _ = run.latest_checkpoint()
    if not path:
        return 0
    saved = checkpoint_folder.read_state(path)
    check_same_job(saved, job.tree())
    epochs_started = _epochs_started(saved)
    if job.train.epochs < epochs_started:
        raise SpecError(
            f"is {job.train.epochs}, but the run has already started epoch {epochs_started}",
            "train.epochs",
        )
    if saved["epoch"] < job.train.epochs:
        check_same_teacher(saved, teacher_digest(job))
    return int(saved["epoch"])


def completed_epochs(run: Run, job: JobSpec) -> int | None:
    """Return the number of epochs of a completed run; None if the job would train it further.

    Raises as `validate_resume` does.
    """
    done = validate_resume(run, job)
    ended = run.result() and (done >= job.train.epochs or job == run.job())
    return done if ended else None


def check_same_job(saved: dict[str, Any], spec: dict[str, Any]) -> None:
    """Raise SpecError unless a spec may resume from a checkpoint's saved state."""
    for path in _changed(saved, spec, ["stages", *IMMUTABLE_ON_RESUME]):
        raise SpecError("cannot change once the run has started: train it as a new job", path)


def has_same_lineage(saved: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Return whether training a spec from the start leads to a checkpoint's saved state.

    Compared is what stages may change; `check_same_job` compares the rest.
    """
    paths = ["stages", "optimizer", "train.label_smoothing", "train.clip_norm"]
    return not any(_changed(saved, spec, paths))


def check_same_data(saved: dict[str, Any], fingerprint: str) -> None:
    """Raise DataError if the data differs from what the checkpoint was trained on."""
    if not may_be_same(saved["about"]["data"], fingerprint):
        raise DataError("the images or labels are not the ones the run was started with")


def check_same_teacher(saved: dict[str, Any], sha256: str | None) -> None:
    """Raise DataError if the weights of the teacher differ from those at the checkpoint."""
    saved_sha256 = saved["about"].get("teacher")
    if saved_sha256 and sha256 and saved_sha256 != sha256:
        raise DataError(
            f"{TEACHER}: its best weights are not those that the run was started with (SHA-256 "
            f"{sha256[:12]}, not {saved_sha256[:12]}): it was trained further, or is another run"
        )


def version_differences(saved: dict[str, Any], current: dict[str, str]) -> list[VersionDiffers]:
    """Return an event for each package whose version differs from the checkpoint's."""
    return [
        VersionDiffers(package=name, saved=version, current=current[name])
        for name, version in saved["about"]["versions"].items()
        if version != current[name]
    ]


def _changed(saved: dict[str, Any], spec: dict[str, Any], paths: list[str]) -> Iterator[str]:
    """Yield the keys whose fixed part differs between a checkpoint's saved state and a spec."""
    # Validation fills in the defaults of keys that are newer than the checkpoint.
    saved_spec = saved_job_from_tree(saved["about"]["spec"]).tree()
    started = _epochs_started(saved)
    for path in paths:
        if _fixed_part(saved_spec, path, started) != _fixed_part(spec, path, started):
            yield path


def _fixed_part(spec: dict[str, Any], path: str, epochs_started: int) -> Any:
    """Return the part of a key's value that is fixed once this number of epochs has started."""
    value: Any = reduce(dict.__getitem__, path.split("."), spec)
    if path == "stages":
        return [stage for stage in value if stage["epoch"] < epochs_started]
    if path == "data":
        return {key: part for key, part in value.items() if key not in READING_KEYS}
    return value


def _epochs_started(saved: dict[str, Any]) -> int:
    """Return the number of epochs that a checkpoint's run has completed or started."""
    return int(saved["epoch"] + (saved["step"] > 0))
