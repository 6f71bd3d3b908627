"""Heartbeats of the workers: the last known state of each, as files in the run folder.

heartbeats/
    rank-N.json     last epoch and step of the worker, and its error
    rank-N.stack    stacks of its threads, once it has been unresponsive: see diagnosis.py
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raycnn import io

FOLDER = "heartbeats"

FailureKind = Literal["", "error", "timeout", "peer_lost"]


@dataclass(frozen=True)
class Heartbeat:
    """The last known state of a worker."""

    rank: int
    pid: int
    time: float
    """Seconds since 1970."""
    epoch: int = 0
    """Current epoch, from 1; 0 before the first."""
    step: int = 0
    """Steps completed in this epoch; images decoded, before the first."""
    failure: FailureKind = ""
    """`error`: its own error; `timeout` or `peer_lost`: caused by another worker."""
    error: str = ""
    """The error as one line; empty without a failure."""


def stack_path(folder: Path, rank: int) -> Path:
    """Return the file of a run folder that a rank's stacks are dumped to."""
    return folder / FOLDER / f"rank-{rank}.stack"


def update_heartbeat(beat: Heartbeat, **fields: Any) -> Heartbeat:
    """Return a copy of a heartbeat with the current time and changed fields."""
    return replace(beat, time=time.time(), **fields)


def write_heartbeat(folder: Path, beat: Heartbeat) -> None:
    """Write a worker's heartbeat to the run folder. Raises OSError if writing fails."""
    (folder / FOLDER).mkdir(exist_ok=True)
    io.write_json(folder / FOLDER / f"rank-{beat.rank}.json", asdict(beat))


def read_heartbeats(folder: Path) -> dict[int, Heartbeat]:
    """Return the last heartbeat of each rank in a run folder."""
    beats = {}
    for path in (folder / FOLDER).glob("rank-*.json"):
        try:
            beat = Heartbeat(**(io.read_json(path) or {}))
        except TypeError:  # the file is truncated, or from another version
            continue
        beats[beat.rank] = beat
    return beats
