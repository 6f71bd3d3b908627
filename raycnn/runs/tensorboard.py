"""TensorBoard event files: one scalar for each metric and epoch."""

import shutil
from pathlib import Path
from typing import Any

from raycnn.training.callbacks import EpochEnded, Event, Resumed

SPARE_BYTES = 1 << 16  # SummaryWriter's thread would end with a traceback on a full disk


class TensorBoardWriter:
    """A callback that writes the metrics of each epoch, unless the disk is full."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def on_event(self, event: Event) -> None:
        if isinstance(event, Resumed):  # repeated epochs replace those in older files
            self.close()
        if isinstance(event, EpochEnded):
            self._write(event.metrics)

    def close(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer:
            writer.close()

    def _write(self, metrics: dict[str, float]) -> None:
        self.folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self.folder).free < SPARE_BYTES:
            raise OSError(f"no space left for {self.folder}")
        epoch = int(metrics["epoch"])
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(self.folder, purge_step=epoch)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
