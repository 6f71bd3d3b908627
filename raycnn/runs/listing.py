"""Summaries of runs, read from small files, without importing torch or opening checkpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from raycnn.config import yaml_file
from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES
from raycnn.config.load import saved_job_from_tree
from raycnn.config.registry import Registry
from raycnn.errors import EnvironmentUnavailable
from raycnn.runs.directory import Run
from raycnn.training.main_metric import main_metric, val_metric

NOT_COMPARED = ("name", "storage.", "workers.", "data.root", "data.download")
COMPONENTS: dict[str, Registry[Any]] = {
    "data": DATASETS, "model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES,
}  # fmt: skip
REQUIRED = "required"  # stands for the values that a spec must set


@dataclass(frozen=True)
class RunSummary:
    """One row of a list of runs."""

    name: str
    state: str
    """done, running, failed or stopped."""
    model: str
    epochs: int
    val: float | None
    """Best validation accuracy or mAP, 0 to 1."""
    test: float | None
    """Test accuracy or mAP, 0 to 1."""
    seconds: float
    """Training time."""
    start: str
    """Local time of creation: `2025-01-31 12:00`."""
    changed: dict[str, str]
    """Keys and values of the spec that differ from the job's first run, as written in YAML.

    A default is no change, whether it is written or not."""


def summarize_runs(runs: Iterable[Run]) -> list[RunSummary]:
    """Return the summaries of runs, in their order."""
    first_keys: dict[str, dict[str, str]] = {}
    summaries = []
    for run in runs:
        keys = spec_keys(run.folder / "job.yaml")
        base = first_keys.setdefault(run.folder.parent.name, keys) if keys else {}
        summaries.append(_summary(run, keys, base))
    return summaries


def _summary(run: Run, keys: dict[str, str], base: dict[str, str]) -> RunSummary:
    rows, result = run.rows(), run.result()
    values = [float(row[metric]) for row in rows if (metric := val_metric(row))]
    return RunSummary(
        name=run.name,
        state="done" if result else run.state(),
        model=keys.get("model.name", ""),
        epochs=len(rows),
        val=max(values, default=None),
        test=_test_metric(result) if result else None,
        seconds=float(rows[-1].get("time_s") or 0) if rows else 0.0,
        start=_start(run.folder / "environment.json"),
        changed=_changes(keys, base),
    )


def _test_metric(result: dict[str, Any]) -> float | None:
    test = result.get("test") or {}
    return test.get(main_metric(test))


def _changes(keys: dict[str, str], base: dict[str, str]) -> dict[str, str]:
    """Return the keys of a spec whose values differ from those of `base`.

    A key that only one of them has is at its default in the other, which a version wrote that did
    not have the key yet, or whose author left the option out.
    """
    missing = keys.keys() ^ base.keys()
    keys, base = ({key: _default(key, each) for key in missing} | each for each in (keys, base))
    return {
        key: value
        for key, value in sorted(keys.items())
        if value != base[key] and not key.startswith(NOT_COMPARED)
    }


def _default(key: str, keys: dict[str, str]) -> str:
    """Return the value in a spec of a key that it does not have; empty without a default."""
    section, _, option = key.partition(".")
    options = _option_defaults(section, keys.get(f"{section}.name", ""))
    return _spec_defaults().get(key) or options.get(option, "")


@cache
def _spec_defaults() -> dict[str, str]:
    """Return the dotted keys of a saved spec that have a default, and their values."""
    tree = {key: {"name": REQUIRED} for key in COMPONENTS} | {"name": REQUIRED}
    distillation = {"distillation": {"teacher": REQUIRED}}
    keys: dict[str, str] = {}
    for train in (distillation, dict[str, Any]()):
        keys |= _keys_of_tree(saved_job_from_tree(tree | {"train": {"epochs": 1} | train}).tree())
    return {key: value for key, value in keys.items() if value != REQUIRED}


@cache
def _option_defaults(section: str, name: str) -> dict[str, str]:
    """Return the options of a component that have a default, and their values."""
    table = COMPONENTS.get(section)
    if not table or name not in table.names():
        return {}
    try:
        fields = table.described(name).model_fields
    except EnvironmentUnavailable:  # the package that has the component cannot be imported
        return {}
    defaults = {key: field.default for key, field in fields.items() if not field.is_required()}
    return _keys_of_tree(to_jsonable_python(defaults, fallback=str))


def spec_keys(file: Path) -> dict[str, str]:
    """Return the dotted keys and values of a job.yaml written by raycnn.

    Values in a list are `[first, second]`; those of mappings in a list are collected by key, and
    their names stand for the list: `data.transforms` is `[resize, mixup]`. Return {} for an
    unreadable file. A YAML parser would take 20 ms for each run.
    """
    try:
        return _keys_of(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def _keys_of_tree(tree: yaml_file.Tree) -> dict[str, str]:
    """Return the dotted keys and values of a spec as `spec_keys` reads them from its file."""
    file = StringIO()
    yaml_file.dump(tree, file)
    return _keys_of(file.getvalue())


def _keys_of(text: str) -> dict[str, str]:
    scalars: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for key, value, in_list in _values(text.splitlines()):
        if in_list:
            lists.setdefault(key, []).append(value)
        else:
            scalars[key] = value
    return scalars | {key: f"[{', '.join(values)}]" for key, values in lists.items()}


def _values(lines: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield the dotted key of each value of block-style YAML, the value, and if it is in a list."""
    path: list[tuple[int, str, bool]] = []  # indent, name, whether it is a list
    for line in lines:
        text = line.lstrip(" ").removeprefix("- ")
        indent = len(line) - len(text)  # excludes the dash, which may be as deep as the key
        while path and path[-1][0] >= indent:
            path.pop()
        is_item = bool(path) and text != line.lstrip(" ")
        if is_item:
            path[-1] = (*path[-1][:2], True)
        key, colon, value = f"{text} ".partition(": ")
        if colon and not (is_item and key == "name"):
            path.append((indent, key, False))
        value = value if colon else text
        if value.strip() and (colon or is_item):
            yield ".".join(key for _, key, _ in path), value.strip(), any(row[2] for row in path)


def _start(path: Path) -> str:
    """Return the creation time of a run: the modification time of its environment.json."""
    try:
        return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
    except OSError:
        return ""
