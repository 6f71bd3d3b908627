"""The errors of raycnn: one class tree, with exit codes.

RaycnnError
├── JobFailed      1  the job ran and failed
│   ├── Diverged      its loss is no longer a finite number
│   └── WorkerLost    workers were lost more often than `failure.retries` allows
│       └── OutOfMemory   its device ran out of memory: retried with a smaller micro-batch
├── SpecError      2  bad usage or a bad spec
├── EnvironmentUnavailable          3  a device, disk space or package is missing
│   └── StorageUnavailable            what is saved cannot be written
├── DataError      4  the data or a checkpoint is damaged or unsuitable
├── ClusterError   5  the cluster is unreachable or too small
└── Interrupted  130  stopped on request, with its state saved

The user can correct each of these, so only the message is shown. Any other exception is a bug in
raycnn and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RaycnnError(Exception):
    """Base of all errors that a user can correct; `exit_code` is that of the command line."""

    exit_code = 1


class JobFailed(RaycnnError):
    """The job ran and failed."""


class Diverged(JobFailed):
    """The loss or a weight is no longer finite."""


class WorkerLost(JobFailed):
    """A worker process ended unexpectedly or did not respond."""


class OutOfMemory(WorkerLost):
    """A device ran out of memory; `micro_batch` is the smaller size to retry with, in images."""

    def __init__(self, message: str, micro_batch: int):
        super().__init__(message, micro_batch)
        self.message, self.micro_batch = message, micro_batch

    def __str__(self) -> str:
        return self.message


class SpecError(RaycnnError):
    """Bad usage or an invalid spec; `key` is the invalid dotted key, if there is one."""

    exit_code = 2

    def __init__(self, message: str, key: str = ""):
        super().__init__(message, key)
        self.message, self.key = message, key

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class EnvironmentUnavailable(RaycnnError):
    """A device, a package, disk space or a file system that the job needs is not available."""

    exit_code = 3


class StorageUnavailable(EnvironmentUnavailable):
    """What a job saves cannot be written: the disk is full, or a file system is unreachable."""


class DataError(RaycnnError):
    """Data or a checkpoint is missing, damaged or unsuitable."""

    exit_code = 4


class ClusterError(RaycnnError):
    """The cluster is unreachable or too small."""

    exit_code = 5


class Interrupted(RaycnnError):
    """The job was stopped on request, with its state saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; other libraries' can fill screens."""
    return str(error).strip().partition("\n")[0]


NAMES_SHOWN = 40
SYNONYMS = {
    "arch": "model", "architecture": "model", "network": "model", "dataset": "data",
    "lr_scheduler": "schedule", "scheduler": "schedule",
    "type": "name", "learning_rate": "lr", "wd": "weight_decay",
    "bs": "batch_size", "batch": "batch_size", "max_epochs": "epochs", "num_epochs": "epochs",
    "grad_clip": "clip_norm", "early_stopping": "patience", "amp": "precision",
    "num_workers": "count", "gpus": "count", "accelerator": "device", "image_size": "size",
}  # fmt: skip
"""raycnn's name of a setting, by its name in other programs."""


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest valid name and all valid names."""
    names = sorted(names)
    valid = ", ".join(names[:NAMES_SHOWN]) or "none"
    if len(names) > NAMES_SHOWN:
        valid += f" and {len(names) - NAMES_SHOWN:,} more"
    kinds = f"{kind}es" if kind.endswith("ch") else f"{kind}s"
    return f"unknown {kind} {shortened(name)}{did_you_mean(name, names)} ({kinds}: {valid})"


def plural(noun: str, count: int) -> str:
    """Return a noun as it is after a count: with an `s` unless that is 1."""
    return noun if count == 1 else f"{noun}s"


def shortened(value: object, length: int = 80) -> str:
    """Return the repr of a value, truncated to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a `did you mean` suggestion for the nearest name; empty if none is near."""
    names = list(names)
    synonym = SYNONYMS.get(str(name))
    near = [synonym] if synonym in names else get_close_matches(str(name)[:100], names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
