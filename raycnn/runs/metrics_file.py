"""metrics.csv: one row per epoch, rewritten after each, so that it recovers from a full disk."""

import csv
from pathlib import Path

from raycnn import io
from raycnn.training.callbacks import EpochEnded, Event, Resumed

SINGLE_LABEL = ["train/loss", "train/acc1", "val/loss", "val/acc1", "val/acc5"]
MULTI_LABEL = ["train/loss", "train/f1", "val/loss", "val/map", "val/f1", "val/f1_macro"]
OTHERS = ["lr", "images_per_s", "memory_mib", "time_s"]
COLUMNS = ["epoch", "step", *SINGLE_LABEL, *OTHERS]
MULTI_LABEL_COLUMNS = ["epoch", "step", *MULTI_LABEL, *OTHERS]


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
            multi_label = any("train/f1" in row for row in self.rows)
            columns = MULTI_LABEL_COLUMNS if multi_label else COLUMNS
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(self.rows)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv; none if it is missing or damaged."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):  # resuming rewrites a damaged file
        return []
    return [row for row in rows if row.get("epoch") and None not in row.values()]
