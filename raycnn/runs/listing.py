"""A list of runs, read from small files alone: it imports no torch and opens no checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raycnn import io
from raycnn.runs.events import read_events
from raycnn.runs.metrics_file import read_metrics
from raycnn.training.callbacks import Failed

NOT_COMPARED = ("name", "storage.", "workers.", "data.root", "data.download")


@dataclass(frozen=True)
class RunSummary:
    """What a list says of a run."""

    name: str
    state: str
    """done, running, failed or stopped."""
    model: str
    epochs: int
    val: float | None
    """The best validation accuracy, 0 to 1."""
    test: float | None
    """The test accuracy, 0 to 1."""
    seconds: float
    """Of training."""
    start: str
    changed: dict[str, str]
    """Keys of the spec that differ from those of the job's first run, as they are written."""


def run_folders(root: str | Path) -> list[Path]:
    """Return the folders of the runs below a folder, by job and number."""
    found = [path.parent for path in Path(root).glob("*/*/job.yaml") if path.parent.name.isdigit()]
    return sorted(found, key=lambda folder: (folder.parent, int(folder.name)))


def summarize_runs(folders: Iterable[Path]) -> list[RunSummary]:
    """Return what a list says of runs, in the order of their folders."""
    first: dict[str, dict[str, str]] = {}
    found = []
    for folder in folders:
        keys = spec_keys(folder / "job.yaml")
        base = first.setdefault(folder.parent.name, keys)
        found.append(_summary(folder, keys, base))
    return found


def _summary(folder: Path, keys: dict[str, str], base: dict[str, str]) -> RunSummary:
    rows = read_metrics(folder / "metrics.csv")
    result = io.read_json(folder / "result.json")
    accuracies = [float(row["val/acc1"]) for row in rows if row.get("val/acc1")]
    changed = {
        key: keys.get(key, "")
        for key in sorted({*keys, *base})
        if keys.get(key) != base.get(key) and not key.startswith(NOT_COMPARED)
    }
    return RunSummary(
        name=f"{folder.parent.name}/{folder.name}",
        state="done" if result else _state(folder),
        model=keys.get("model.name", ""),
        epochs=len(rows),
        val=max(accuracies, default=None),
        test=result["test"]["acc1"] if result else None,
        seconds=float(rows[-1].get("time_s") or 0) if rows else 0.0,
        start=_start(folder / "environment.json"),
        changed=changed,
    )


def _state(folder: Path) -> str:
    """Return running, failed or stopped, of a run without a result."""
    if io.is_locked(folder / ".lock"):
        return "running"
    events = read_events(folder / "events.jsonl")
    return "failed" if events and isinstance(events[-1], Failed) else "stopped"


def spec_keys(file: Path) -> dict[str, str]:
    """Return dotted keys and values of a job.yaml as raycnn writes it: a key on each line.

    A file that cannot be read has none; a YAML parser would take 20 ms for each run.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    keys: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in lines:
        key, colon, value = line.strip().removeprefix("- ").partition(":")
        if not colon:
            continue
        indent = len(line) - len(line.lstrip())
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, key))
        if value.strip():
            dotted = ".".join(name for _, name in path)
            keys[dotted] = f"{keys[dotted]}, {value.strip()}" if dotted in keys else value.strip()
    return keys


def _start(path: Path) -> str:
    """Return when a run was created, which is when its environment was written."""
    try:
        return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
    except OSError:
        return ""
