"""result.json and per_class.json: the results of a completed run."""

from typing import Any

from raycnn.training.checkpoint import TrainingState
from raycnn.training.metrics import EpochMetrics, class_metrics, confidence_interval

RESULT, PER_CLASS = "result.json", "per_class.json"


def result_of(state: TrainingState, test: EpochMetrics) -> dict[str, Any]:
    """Return the content of result.json and per_class.json for a trained state and its test."""
    low, high = confidence_interval(test.hits, test.count)
    best = state.history[state.best - 1] if state.best else None
    return {
        "test": {
            "acc1": test.acc1,
            "interval95": [low, high],
            "acc5": test.acc5,
            "loss": test.mean_loss,
            "count": test.count,
            "images_per_s": test.count / test.seconds,
            "ms_per_image": test.ms_per_image,
        },
        "best_epoch": state.best,
        "best": best,
        "val": _validation(best, state.metadata["images"]["val"]),
        "epochs": state.epoch,
        "time_s": state.history[-1]["time_s"] if state.history else 0.0,
        "confusion": test.confusion,
        "per_class": class_metrics(test.confusion, tuple(state.metadata["classes"])),
    }


def _validation(best: dict[str, float] | None, count: int) -> dict[str, Any] | None:
    """Return the validation accuracy of the best epoch, with its interval."""
    if not best or "val/acc1" not in best:
        return None
    low, high = confidence_interval(round(best["val/acc1"] * count), count)
    return {"acc1": best["val/acc1"], "interval95": [low, high], "count": count}
