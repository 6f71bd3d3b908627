"""result.json and per_class.json: the results of a completed run."""

from typing import Any

from raycnn.training.loop import TrainResult
from raycnn.training.main_metric import val_metric
from raycnn.training.map_interval import map_interval
from raycnn.training.metrics import EpochMetrics, class_metrics
from raycnn.training.multi_label import named_rows
from raycnn.training.predictions import SplitPredictions
from raycnn.training.uncertainty import confidence_interval


def result_of(trained: TrainResult) -> dict[str, Any]:
    """Return the content of result.json and per_class.json for a tested training, on rank 0."""
    state, test = trained.state, trained.test
    assert test
    best = state.history[state.best - 1] if state.best else None
    val_images = state.metadata["images"]["val"]
    return {
        "train": _ms_per_image(trained.last_epoch) if trained.last_epoch else None,
        "test": _test(test, trained.predictions.get("test")),
        "best_epoch": state.best,
        "best": best,
        "val": _validation(best, val_images, trained.predictions.get("val")),
        "epochs": state.epoch,
        "time_s": state.history[-1]["time_s"] if state.history else 0.0,
        "confusion": test.confusion,
        "per_class": _per_class(test, tuple(state.metadata["classes"])),
    }


def _test(test: EpochMetrics, predictions: SplitPredictions | None) -> dict[str, Any]:
    """Return the test metrics; the interval is that of the accuracy, or of the mAP."""
    counts = _ms_per_image(test) | {
        "count": test.count,
        "images_per_s": test.count / test.seconds,
    }
    if test.multi_label:
        means = test.multi_label.means | _map_interval(predictions)
        return means | {"loss": test.mean_loss} | counts
    low, high = confidence_interval(test.hits, test.count)
    accuracies = {"acc1": test.acc1, "interval95": [low, high], "acc5": test.acc5}
    return accuracies | {"loss": test.mean_loss} | counts


def _ms_per_image(metrics: EpochMetrics) -> dict[str, float | None]:
    """Return the times per image of steps or forward passes, and of waiting for images."""
    return {
        "ms_per_image": metrics.ms_per_image,
        "data_ms_per_image": metrics.data_ms_per_image,
    }


def _map_interval(predictions: SplitPredictions | None) -> dict[str, Any]:
    """Return `interval95` of the mAP; nothing without the predictions, which rank 0 has."""
    if not predictions:
        return {}
    return {"interval95": list(map_interval(predictions.labels, predictions.probabilities))}


def _per_class(test: EpochMetrics, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    if test.multi_label:
        return named_rows(test.multi_label, classes)
    return class_metrics(test.confusion, classes)


def _validation(
    best: dict[str, float] | None, count: int, predictions: SplitPredictions | None
) -> dict[str, Any] | None:
    """Return the validation accuracy or mAP of the best epoch, with its interval."""
    metric = best and val_metric(best)
    if not best or not metric:
        return None
    if metric == "val/map":
        return {"map": best[metric]} | _map_interval(predictions) | {"count": count}
    low, high = confidence_interval(round(best["val/acc1"] * count), count)
    return {"acc1": best["val/acc1"], "interval95": [low, high], "count": count}


def times_per_image(result: dict[str, Any]) -> dict[str, str]:
    """Return the times per image of training and test on one device, where result.json has them.

    `data` is the time in which the device waited for images or prepared them.
    """
    texts = {}
    for split, work, name in (("train", "training", "step"), ("test", "test", "inference")):
        times = result.get(split) or {}
        named = {"data": times.get("data_ms_per_image"), name: times.get("ms_per_image")}
        if known := [f"{ms:.3g} ms {part}" for part, ms in named.items() if ms is not None]:
            texts[work] = ", ".join(known)
    return texts
