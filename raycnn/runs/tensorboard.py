"""TensorBoard event files: metrics by epoch, hyperparameters, the test, the report's figures."""

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from raycnn.config.changes import flatten
from raycnn.runs.directory import Run
from raycnn.training.callbacks import EpochEnded, Evaluated, Event, ReportWritten, Resumed

# With less free space nothing is written: SummaryWriter's thread would end with a traceback.
SPARE_BYTES = 1 << 16
AXES = ("epoch", "step")  # columns of a row that are the axis of charts, not charts themselves
# Metrics shown in the table of hyperparameters.
HPARAM_METRICS = ("test/acc1", "val/acc1", "test/map", "val/map", "val/loss")


class TensorBoardWriter:
    """A callback that writes the results of a run, unless the disk is full."""

    def __init__(self, run: Run):
        self.run = run
        self.folder = run.folder / "logs" / "tensorboard"
        self._writer: Any = None
        self._epoch, self._first_epoch = 0, 1

    def on_event(self, event: Event) -> None:
        match event:
            case Resumed():  # repeated epochs replace those in older files
                self.close()
                self._epoch, self._first_epoch = event.epoch, event.epoch + 1
            case EpochEnded():
                self._epoch = int(event.metrics["epoch"])
                self._write({k: v for k, v in event.metrics.items() if k not in AXES})
            case Evaluated():
                self._write({f"test/{k}": v for k, v in event.metrics.items() if k != "count"})
            case ReportWritten():
                self._write_figures()

    def close(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer:
            writer.close()

    def _write(self, values: Mapping[str, float]) -> None:
        writer = self._open_writer()
        for name, value in values.items():
            writer.add_scalar(name, value, self._epoch)
        writer.flush()

    def _write_figures(self) -> None:
        writer = self._open_writer()
        for path in sorted(self.run.folder.glob("*.png")):
            with Image.open(path) as figure:
                pixels = np.asarray(figure.convert("RGB"))
            writer.add_image(path.stem, pixels, self._epoch, dataformats="HWC")
        writer.flush()

    def _open_writer(self) -> Any:
        """Return the writer, opened first if needed. Raises OSError on a full disk."""
        self.folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self.folder).free < SPARE_BYTES:
            raise OSError(f"no space left for {self.folder}")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import
            from torch.utils.tensorboard.summary import hparams

            self._writer = SummaryWriter(self.folder, purge_step=self._first_epoch)
            # SummaryWriter.add_hparams would write to a separate run.
            metrics = dict.fromkeys(HPARAM_METRICS, 0.0)
            for summary in hparams(_hyperparameters(self.run), metrics):
                self._writer.file_writer.add_summary(summary)
        return self._writer


def _hyperparameters(run: Run) -> dict[str, Any]:
    """Return the keys of the spec, with values that TensorBoard can store."""
    plain = (bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else str(value)
        for key, value in flatten(run.job().tree()).items()
        if value is not None
    }
