"""The metric that chooses the best epoch and compares runs: accuracy, or multi-label mAP.

Imports no torch, so that lists of runs are fast.
"""

from collections.abc import Mapping
from typing import Any

LABELS = {"acc1": "accuracy", "map": "mAP", "f1": "micro F1"}


def main_metric(values: Mapping[str, Any]) -> str:
    """Return the name of the metric among those of a test or a validation: `acc1` or `map`."""
    return "map" if "map" in values else "acc1"


def val_metric(row: Mapping[str, Any]) -> str | None:
    """Return the metric in a row of an epoch: `val/acc1` or `val/map`; None without validation."""
    return next((key for key in ("val/map", "val/acc1") if row.get(key) not in (None, "")), None)


def train_metric(row: Mapping[str, Any]) -> str:
    """Return the metric of training in a row of an epoch: `train/acc1` or `train/f1`."""
    return "train/f1" if row.get("train/f1") not in (None, "") else "train/acc1"
