"""events.jsonl: the events of a run, one on each line, oldest first."""

import json
from pathlib import Path

from raycnn import io
from raycnn.training.callbacks import Event


def append_event(path: Path, event: Event) -> None:
    """Append an event to a file. Raises OSError if writing fails."""
    io.append_line(path, json.dumps(event.to_dict()))


def read_events(path: Path) -> list[Event]:
    """Return the events in a file, skipping truncated lines and unknown events."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _parse(line))]


def _parse(line: str) -> Event | None:
    try:
        tree = json.loads(line)
    except ValueError:
        return None
    return Event.from_dict(tree) if isinstance(tree, dict) else None
