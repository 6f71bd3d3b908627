"""logs/rank-N.log: what one worker did, line by line."""

import logging
from pathlib import Path

from raycnn.training.callbacks import CheckpointSaved, Event, Failed

log = logging.getLogger("raycnn")


class RankLog:
    """Writes events, and what raycnn logs in this process, into a file until it is closed."""

    def __init__(self, path: Path):
        try:
            self.handler: logging.Handler = _Handler(path)
        except OSError:  # a log that cannot be written never stops training
            self.handler = logging.NullHandler()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(self.handler)
        log.setLevel(logging.INFO)
        log.propagate = False

    def on_event(self, event: Event) -> None:
        # A failure is logged where it is caught, with its traceback.
        if not event.passing and not isinstance(event, CheckpointSaved | Failed):
            log.info(event.message)

    def close(self) -> None:
        log.removeHandler(self.handler)
        try:
            self.handler.close()
        except OSError:  # a full disk, that some lines were still to be written to
            pass


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Lose a line on a full disk, and go on."""
