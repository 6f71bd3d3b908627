"""metrics.csv: one row per epoch, rewritten each time, so that it recovers from a full disk."""

import csv
from pathlib import Path

from raycnn import io
from raycnn.training.callbacks import EpochEnded, Event, Resumed

COLUMNS = [
    "epoch", "step", "train/loss", "train/acc1", "val/loss", "val/acc1", "val/acc5",
    "lr", "images_per_s", "memory_mib", "time_s",
]  # fmt: skip


class MetricsWriter:
    """A callback that writes metrics.csv: the history of a resumed run, then each new epoch."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_event(self, event: Event) -> None:
        match event:
            case Resumed():
                self.rows = [*event.history]
            case EpochEnded():
                self.rows.append(event.metrics)
            case _:
                return
        with io.atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            table.writerows(self.rows)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv; none where it is missing or damaged."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):  # damaged; resuming rewrites it
        return []
