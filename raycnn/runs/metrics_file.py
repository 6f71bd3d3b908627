"""metrics.csv: a row for each epoch, written anew each time so that it heals after a full disk."""

import csv
from pathlib import Path

from raycnn import io
from raycnn.training.callbacks import EpochEnded, Event, Resumed

COLUMNS = [
    "epoch", "step", "train/loss", "train/acc1", "val/loss", "val/acc1", "val/acc5",
    "lr", "images_per_s", "memory_mib", "time_s",
]  # fmt: skip


class MetricsWriter:
    """Keeps metrics.csv: the history of a resumed run, and a row for each epoch that ends."""

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
    """Return the rows of a metrics.csv; none where it is missing or torn."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):  # torn; a resume writes it anew
        return []
