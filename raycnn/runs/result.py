"""result.json and per_class.json: the results of a completed run."""

from typing import Any

from raycnn.training.checkpoint import TrainingState
from raycnn.training.main_metric import val_metric
from raycnn.training.metrics import EpochMetrics, class_metrics, confidence_interval
from raycnn.training.multi_label import named_rows

RESULT, PER_CLASS = "result.json", "per_class.json"


def result_of(state: TrainingState, test: EpochMetrics) -> dict[str, Any]:
    """Return the content of result.json and per_class.json for a trained state and its test."""
    best = state.history[state.best - 1] if state.best else None
    return {
        "test": _test(test),
        "best_epoch": state.best,
        "best": best,
        "val": _validation(best, state.metadata["images"]["val"]),
        "epochs": state.epoch,
        "time_s": state.history[-1]["time_s"] if state.history else 0.0,
        "confusion": test.confusion,
        "per_class": _per_class(test, tuple(state.metadata["classes"])),
    }


def _test(test: EpochMetrics) -> dict[str, Any]:
    """Return the test metrics; the interval is that of the accuracy, and mAP has none."""
    counts = {
        "count": test.count,
        "images_per_s": test.count / test.seconds,
        "ms_per_image": test.ms_per_image,
    }
    if test.multi_label:
        return test.multi_label.means | {"loss": test.mean_loss} | counts
    low, high = confidence_interval(test.hits, test.count)
    accuracies = {"acc1": test.acc1, "interval95": [low, high], "acc5": test.acc5}
    return accuracies | {"loss": test.mean_loss} | counts


def _per_class(test: EpochMetrics, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    if test.multi_label:
        return named_rows(test.multi_label, classes)
    return class_metrics(test.confusion, classes)


def _validation(best: dict[str, float] | None, count: int) -> dict[str, Any] | None:
    """Return the validation accuracy of the best epoch, with its interval, or its mAP."""
    metric = best and val_metric(best)
    if not best or not metric:
        return None
    if metric == "val/map":
        return {"map": best[metric], "count": count}
    low, high = confidence_interval(round(best["val/acc1"] * count), count)
    return {"acc1": best["val/acc1"], "interval95": [low, high], "count": count}
