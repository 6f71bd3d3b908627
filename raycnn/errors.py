"""What can go wrong with a job: one tree, each class with its exit code.

RaycnnError
├── JobFailed      1  the job ran and failed
│   ├── Diverged      its loss is no longer a finite number
│   └── WorkerLost    a worker went away more often than `failure.retries` allows
│       └── OutOfMemory   its device was full: the next try has a smaller micro-batch
├── SpecError      2  bad usage or a bad spec
├── EnvironmentUnavailable          3  this environment cannot: device, disk, versions
├── DataError      4  the data, or a checkpoint, is not what it should be
├── ClusterError   5  the cluster cannot be reached, or is too small
└── Interrupted  130  stopped on request, its state saved

Every one is a user's to mend, and is shown as its message alone. Anything else is a bug of ours
and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RaycnnError(Exception):
    exit_code = 1


class JobFailed(RaycnnError):
    pass


class Diverged(JobFailed):
    pass


class WorkerLost(JobFailed):
    pass


class OutOfMemory(WorkerLost):
    """`micro_batch` is how many images at once the next try is to have."""

    def __init__(self, message: str, micro_batch: int):
        super().__init__(message, micro_batch)
        self.message, self.micro_batch = message, micro_batch

    def __str__(self) -> str:
        return self.message


class SpecError(RaycnnError):
    """`key` is the dotted name of the setting at fault, where there is one."""

    exit_code = 2

    def __init__(self, message: str, key: str = ""):
        super().__init__(message, key)
        self.message, self.key = message, key

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class EnvironmentUnavailable(RaycnnError):
    exit_code = 3


class DataError(RaycnnError):
    exit_code = 4


class ClusterError(RaycnnError):
    exit_code = 5


class Interrupted(RaycnnError):
    exit_code = 130


def first_line(error: BaseException) -> str:
    """Of what it says: other libraries' errors go on for screens."""
    return str(error).strip().partition("\n")[0]


NAMES_SHOWN = 40
SYNONYMS = {
    "arch": "model", "architecture": "model", "network": "model", "dataset": "data",
    "lr_scheduler": "schedule", "scheduler": "schedule",
    "learning_rate": "lr", "wd": "weight_decay", "betas": "beta1",
    "bs": "batch_size", "batch": "batch_size", "max_epochs": "epochs", "num_epochs": "epochs",
    "grad_clip": "clip_norm", "early_stopping": "patience", "amp": "precision",
    "num_workers": "count", "gpus": "count", "accelerator": "device", "image_size": "size",
}  # fmt: skip
"""What other programs call a setting."""


def unknown(kind: str, found: str, names: Iterable[str]) -> str:
    """The sentence for a name nobody knows: the nearest one, and all there are."""
    names = sorted(names)
    there = ", ".join(names[:NAMES_SHOWN]) or "none"
    if len(names) > NAMES_SHOWN:
        there += f" and {len(names) - NAMES_SHOWN:,} more"
    return f"unknown {kind} {shortened(found)}{did_you_mean(found, names)} ({kind}s: {there})"


def shortened(value: object, length: int = 80) -> str:
    """Return a value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def did_you_mean(found: str, names: Iterable[str]) -> str:
    """Return the question that ends a sentence about an unknown name, where one is near."""
    names = list(names)
    synonym = SYNONYMS.get(str(found))
    near = [synonym] if synonym in names else get_close_matches(str(found)[:100], names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
