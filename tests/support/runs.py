"""Runs that tests train in their own process, and what a run is compared by."""

from contextlib import closing
from typing import TypeVar

import torch
from safetensors.torch import load_file

from raycnn.config.schema import JobSpec
from raycnn.launch.worker import train_worker
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import FolderChannel
from raycnn.training.callbacks import Event

SomeEvent = TypeVar("SomeEvent", bound=Event)
Weights = dict[str, torch.Tensor]


def train(job: JobSpec, run: Run | None = None, stop_at: int | None = None) -> Run:
    """Train here, in a new run or an old one; be asked to stop when so many steps are done."""
    run = run or Run.create(job)
    steps = 0

    def asked() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    with closing(FolderChannel(run, job.workers.timeout_s, asked)) as channel:
        train_worker(job, run, torch.device("cpu"), channel)
    return run


def happened(run: Run, kind: type[SomeEvent]) -> list[SomeEvent]:
    """The events of a run of this type, oldest first."""
    return [event for event in run.events() if isinstance(event, kind)]


def weights(run: Run, which: str = "last") -> Weights:
    return load_file(run.weights(which) / "model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def distance(one: Weights, other: Weights) -> float:
    return max((one[key] - other[key]).abs().max().item() for key in one)


def numbers(run: Run) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    clock = {"images_per_s", "time_s"}
    return [{k: v for k, v in row.items() if k not in clock} for row in run.rows()]
