"""logs/rank-N.log: the log file of one worker."""

import logging
from pathlib import Path

from raycnn.training.callbacks import CheckpointSaved, Event, Failed

log = logging.getLogger("raycnn")


class RankLog:
    """A callback that logs events, and sends the raycnn logger of this process to a file."""

    def __init__(self, path: Path):
        try:
            self.handler: logging.Handler = _Handler(path)
        except OSError:  # a log that cannot be written must not stop training
            self.handler = logging.NullHandler()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(self.handler)
        log.setLevel(logging.INFO)
        log.propagate = False

    def on_event(self, event: Event) -> None:
        # A failure is logged where it is caught, with its traceback.
        if not event.transient and not isinstance(event, CheckpointSaved | Failed):
            log.info(event.message)

    def close(self) -> None:
        """Detach from the logger and close the file."""
        log.removeHandler(self.handler)
        try:
            self.handler.close()
        except OSError:  # buffered lines are lost on a full disk
            pass


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that cannot be written, such as on a full disk."""
