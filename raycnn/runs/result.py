"""result.json and per_class.json: the results of a completed run."""

from typing import Any

from raycnn.training.checkpoint import TrainingState
from raycnn.training.metrics import EpochMetrics, class_metrics, confidence_interval

RESULT, PER_CLASS = "result.json", "per_class.json"


def result_of(state: TrainingState, test: EpochMetrics) -> dict[str, Any]:
    """Return the content of result.json and per_class.json for a trained state and its test."""
    low, high = confidence_interval(test.hits, test.count)
    return {
        "test": {
            "acc1": test.acc1,
            "interval95": [low, high],
            "acc5": test.acc5,
            "loss": test.mean_loss,
            "count": test.count,
            "images_per_s": test.count / test.seconds,
        },
        "best_epoch": state.best,
        "best": state.history[state.best - 1] if state.best else None,
        "epochs": state.epoch,
        "time_s": state.history[-1]["time_s"] if state.history else 0.0,
        "confusion": test.confusion,
        "per_class": class_metrics(test.confusion, tuple(state.metadata["classes"])),
    }
