"""The history of a run: its events in order, with their epochs, to mark them on curves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from raycnn.runs.directory import Run
from raycnn.training import callbacks
from raycnn.training.callbacks import Event

MARKS: dict[type[Event], str] = {
    callbacks.Resumed: "resumed",
    callbacks.WorkersRestarted: "worker lost",
    callbacks.RolledBack: "rolled back",
    callbacks.WorldResized: "resized",
    callbacks.StoppedEarly: "stopped early",
    callbacks.StoppedOnRequest: "stopped",
    callbacks.MicroBatchHalved: "out of memory",
    callbacks.CheckpointSkipped: "checkpoint skipped",
    callbacks.SettingChanged: "setting changed",
    callbacks.Failed: "failed",
}
SERIOUS = (
    callbacks.WorkersRestarted, callbacks.RolledBack, callbacks.MicroBatchHalved,
    callbacks.CheckpointSkipped, callbacks.Failed,
)  # fmt: skip
# Events that are left out, since the curves and the result show them.
OMITTED = (
    callbacks.EpochEnded, callbacks.CheckpointSaved, callbacks.RunOpened, callbacks.Evaluated,
    callbacks.ConnectingToRay, callbacks.ReportWritten,
)  # fmt: skip


@dataclass(frozen=True)
class HistoryEntry:
    """An event as a report shows it."""

    when: str
    epoch: float | None
    """The number of completed epochs; None before the first."""
    mark: str
    """A short label on the curves; empty for events that are only listed."""
    text: str
    serious: bool


def history_entries(run: Run) -> list[HistoryEntry]:
    """Return the events of a run for its report, oldest first."""
    events = run.events()
    return [
        HistoryEntry(
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time)),
            epoch,
            MARKS.get(type(event), ""),
            event.message,
            isinstance(event, SERIOUS),
        )
        for event, epoch in zip(events, _epochs(events), strict=True)
        if not isinstance(event, OMITTED)
    ]


def _epochs(events: Sequence[Event]) -> list[float | None]:
    """Return the position of each event on the axis of epochs.

    A restart or rollback is placed where training continues: at the next `Resumed`.
    """
    places: list[float | None] = []
    last: float | None = None
    for event in events:
        match event:
            case callbacks.EpochEnded():
                last = event.metrics["epoch"]
            case callbacks.Resumed() | callbacks.StoppedOnRequest():
                last = float(event.epoch)
        places.append(last)
    following: float | None = None
    for index in reversed(range(len(events))):
        match events[index]:
            case callbacks.Resumed():
                following = places[index]
            case callbacks.WorkersRestarted() | callbacks.RolledBack() if following:
                places[index] = following
    return places
