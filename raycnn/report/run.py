"""The report of a run: report.html, and its figures as PNGs, in the run folder.

Images need the data and the weights; everything else is read from the run folder.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from raycnn.analysis import evaluate
from raycnn.analysis.predictions_file import Predictions, from_training
from raycnn.config.changes import flatten
from raycnn.config.schema import JobSpec
from raycnn.data.label_arrays import class_counts, label_name
from raycnn.data.sources.base import SPLITS
from raycnn.errors import DataError, RaycnnError
from raycnn.io import read_json
from raycnn.models import count_parameters
from raycnn.models.flops import count_flops
from raycnn.report import duplicates, figures, images, page, style
from raycnn.report.history import HistoryEntry, history_entries
from raycnn.report.images import ReportInput, Thumbnail
from raycnn.report.page import clip, percent
from raycnn.runs.directory import Run
from raycnn.runs.result import times_per_image
from raycnn.runtime import rng
from raycnn.runtime.device import find
from raycnn.training import checkpoint, checkpoint_folder
from raycnn.training.callbacks import Callback, ReportWritten, Warned, format_flops
from raycnn.training.loop import TrainResult
from raycnn.training.main_metric import val_metric
from raycnn.training.predictions import SplitPredictions
from raycnn.training.setup import new_training_state
from raycnn.training.uncertainty import FEW_IMAGES, confidence_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("raycnn")

FILE = "report.html"
MAX_MISTAKES, MAX_SAMPLES = 24, 12  # the most confident wrong answers, and random test images
MAX_ISSUES = 16  # label issues per split
MAX_MATRIX_CLASSES = 30  # of a complete confusion matrix; with more classes, the pairs below
MAX_PAIRS = 15  # most confused pairs of classes
MAX_TABLE_CLASSES = 300  # the classes of the lowest recall
MAX_WARNINGS, MAX_EVENTS = 20, 40
MAX_MARKS = 8  # epochs with events that are marked on a curve


@dataclass(frozen=True)
class Card:
    """An image with its Grad-CAM overlay, label, prediction and probabilities."""

    images: list[Thumbnail]
    label: str
    predicted: str
    label_probability: float
    probability: float
    file: str


def write_report(
    run: Run, predictions: Predictions | None, report_input: ReportInput | None, missing: str = ""
) -> Path:
    """Write report.html and the PNGs from the run's predictions; return the page's path.

    Without a `report_input` the report has no images, and `missing` is the reason. Raises OSError.
    """
    plots = _Plots(run.folder)
    with style.styled():
        values = _values(run, predictions, report_input, missing, plots)
    title = f"{run.name} · raycnn"
    html = page.render("run.html", title, **values)
    if len(html.encode()) > page.MAX_BYTES:  # images take most of the space
        values |= {"mistakes": [], "samples": [], "issues": [], "batch": None, "duplicates": None}
        values["missing"] = "the page would be too large with images; see the PNGs"
        html = page.render("run.html", title, **values)
    page.save_page(run.folder / FILE, html)
    return run.folder / FILE


def open_run(run: Run, device: str = "cpu", root: str | None = None) -> ReportInput:
    """Return the network and data of a run. Raises a RaycnnError if one of them is missing."""
    path = run.weights("best")
    job, splits = evaluate.open_run_data(run, checkpoint_folder.read_state(path), root)
    chosen = find(device).select(0)
    state = new_training_state(job, splits, chosen)
    checkpoint.load_weights(state.model, path)
    return ReportInput(job, splits, state.model, chosen)


def write_report_or_warn(run: Run, job: JobSpec, result: TrainResult, callback: Callback) -> None:
    """Write the report of a finished run; an error is only a warning."""
    try:
        best = result.state.best or result.state.epoch
        predictions = from_training(result.splits, best, result.predictions)
        model = result.state.model
        device = next(model.parameters()).device
        path = write_report(run, predictions, ReportInput(job, result.splits, model, device))
        callback.on_event(ReportWritten(file=path.name))
        run.flush()
    except Exception as error:
        log.warning("the report is not written", exc_info=error)
        again = f"`{run.command('report')}` tries again"
        callback.on_event(Warned(text=f"the report is not written: {error}; {again}"))


def write_from_folder(run: Run, device: str = "cpu", root: str | None = None) -> Path:
    """Write the report of a run from its folder, with images if its data is available."""
    try:
        report_input, missing = open_run(run, device, root), ""
    except RaycnnError as error:
        report_input, missing = None, str(error)
        log.warning(f"the report has no images: {missing}")
    try:
        predictions = evaluate.stored_predictions(run)
    except DataError:  # the run has no complete epoch, or corrupt weights
        predictions = None
    return write_report(run, predictions, report_input, missing)


class _Plots:
    """Plots each figure once, for the page and as a PNG in the folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(
        self,
        name: str,
        title: str,
        plot: Callable[["Axes"], None],
        size: tuple[float, float] = style.SIZE,
    ) -> Markup:
        figure = style.render_figure(plot, size)
        svg = Markup(style.svg(figure, title))  # before the PNG, which fixes the layout
        style.save_png(figure, self.folder / f"{name}.png")
        return svg


def _values(
    run: Run,
    predictions: Predictions | None,
    report_input: ReportInput | None,
    missing: str,
    plots: _Plots,
) -> dict[str, Any]:
    """Return the values of the template."""
    job, result = run.job(), run.result()
    rows = [{key: float(value) for key, value in row.items() if value} for row in run.rows()]
    test = predictions.splits.get("test") if predictions else None
    best = result["best_epoch"] if result else _best_epoch(run)
    history = history_entries(run)
    duplicate_section = duplicates.section(report_input) if report_input else None
    spec, changed = flatten(job.tree()), flatten(job.model_dump(mode="json", exclude_defaults=True))
    return {
        "name": run.name, "state": run.state(), "result": result, "best": best, "rows": rows,
        "facts": _facts(run, job, rows, result, best, report_input),
        "notes": _notes(job, rows, report_input, result) + _leak_notes(duplicate_section),
        "missing": missing,
        "events": history[-MAX_EVENTS:],
        "curves": _curves(rows, best, history, plots),
        "classes": _class_rows(test, predictions),
        "class_count": len(predictions.classes) if predictions else 0,
        "confusion": _confusion(test, predictions, plots),
        "mistakes": _mistakes(test, predictions, report_input, plots.folder),
        "samples": _samples(test, predictions, report_input, plots.folder),
        "mistake_count": _mistake_count(test), "multi_label": bool(test and test.multi_label),
        "issues": _issues(predictions, report_input, plots.folder),
        **_confidence(test, plots),
        "data": _data(report_input, job.data.name), "warnings": _warnings(report_input),
        "duplicates": duplicate_section,
        "batch": _batch(report_input, plots.folder),
        "augmented": bool(report_input and report_input.splits.pipeline.numbers),
        "distilled": bool(job.train.distillation), "tta": bool(job.train.tta),
        "changed": [(key, page.plain(value)) for key, value in spec.items() if key in changed],
        "defaults": [(key, page.plain(value)) for key, value in spec.items() if key not in changed],
        "environment": _environment(run), "commands": _commands(run, result),
    }  # fmt: skip


def _mistake_count(test: SplitPredictions | None) -> int | None:
    """Return the number of wrong answers; None if an image has any number of classes."""
    if test and test.multi_label:
        return None
    return int((test.predicted != test.labels).sum()) if test else 0


def _best_epoch(run: Run) -> int | None:
    try:
        return int(checkpoint_folder.read_state(run.weights("best"))["epoch"])
    except DataError:
        return None


def _facts(
    run: Run,
    job: JobSpec,
    rows: Sequence[dict[str, float]],
    result: dict[str, Any] | None,
    best: int | None,
    report_input: ReportInput | None,
) -> list[tuple[str, str]]:
    environment = read_json(run.folder / "environment.json") or {}
    facts = [("Best epoch", f"{best} of {len(rows)}" if best else "none yet")]
    row = rows[min(best, len(rows)) - 1] if best and rows else {}
    if metric := val_metric(row):
        facts.append(("Validation, best epoch", percent(row[metric])))
    test = result["test"] if result else {}
    names = {"acc5": "Top-5 accuracy", "f1": "Micro F1", "f1_macro": "Macro F1"}
    facts += [(name, percent(test[key])) for key, name in names.items() if key in test]
    if rows:
        facts.append(("Training time", page.duration(rows[-1]["time_s"])))
        facts.append(("Images per second", f"{rows[-1]['images_per_s']:,.0f}"))
    facts.append(("Network", job.model.name))
    if report_input:
        facts.append(("Parameters", f"{count_parameters(report_input.model):,}"))
        flops = count_flops(report_input.model, report_input.splits.shape)
        facts.append(("Operations per image", format_flops(flops)))
    times = times_per_image(result) if result else {}
    one = " and worker" if job.workers.max_count > 1 else ""
    facts += [(f"{work.capitalize()} per image{one}", text) for work, text in times.items()]
    devices = environment.get("devices") or []
    device = devices[0] if devices else f"CPU, {environment.get('cpus', '?')} cores"
    if (workers := job.workers.max_count) > 1:
        device = f"{workers} workers on {device}" if not devices else f"{device} × {workers}"
    facts.append(("Device", clip(device)))
    facts.append(("Data", job.data.name))
    return facts


def _notes(
    job: JobSpec,
    rows: Sequence[dict[str, float]],
    report_input: ReportInput | None,
    result: dict[str, Any] | None,
) -> list[str]:
    """Return caveats of the test result."""
    notes = []
    val = len(report_input.splits.labels("val")) if report_input else None
    metric = val_metric(rows[-1]) if rows else None
    if rows and not metric:
        notes.append("No image was held out: the last epoch counts as the best.")
    elif metric and val and val < FEW_IMAGES:
        best = max(row.get(metric, 0.0) for row in rows)
        if bounds := _val_interval(metric, best, val, result):
            low, high = (percent(bound, 1) for bound in bounds)
            notes.append(
                f"Only {val} validation images choose the best epoch: its {percent(best, 1)} could "
                f"be anything from {low} to {high}. Raise data.val."
            )
    if result and job.train.tta:
        notes.append(
            "Validated and tested with test-time augmentation: the logits are the mean over the "
            "image and its mirror image, in two passes of the network."
        )
    if result and result["test"]["count"] < FEW_IMAGES:
        interval = ": see its interval" if "interval95" in result["test"] else ""
        notes.append(f"The test has only {result['test']['count']} images{interval}.")
    return notes


def _val_interval(
    metric: str, best: float, count: int, result: dict[str, Any] | None
) -> Sequence[float] | None:
    """Return the interval of the best validation accuracy, or of the mAP of a tested run."""
    if metric == "val/acc1":
        return confidence_interval(round(best * count), count)
    return ((result or {}).get("val") or {}).get("interval95")


def _leak_notes(section: duplicates.DuplicateSection | None) -> list[str]:
    if not section or not section.leaks:
        return []
    images = "image is" if section.leaks == 1 else "images are"
    return [
        f"{section.leaks:,} {images} also in another split, which flatters the result: see "
        "The data."
    ]


def _curves(
    rows: Sequence[dict[str, float]],
    best: int | None,
    history: Sequence[HistoryEntry],
    plots: _Plots,
) -> list[Markup]:
    if not rows:
        return []
    marks = _marks(history)[-MAX_MARKS:]
    names = {"acc1": "accuracy", "map": "mAP", "f1": "F1", "loss": "loss"}
    metrics = {
        key: name for key, name in names.items() if any(f"{s}/{key}" in rows[-1] for s in SPLITS)
    }

    def plot_of(metric: str) -> Callable[["Axes"], None]:
        return lambda axes: figures.plot_curve(axes, rows, metric, best, marks)

    return [
        plots(name.lower(), f"{name[0].upper()}{name[1:]} by epoch", plot_of(metric))
        for metric, name in metrics.items()
    ]


def _marks(history: Sequence[HistoryEntry]) -> list[figures.Mark]:
    """Return one mark for each epoch in which something happened: `stopped, resumed`."""
    by_epoch: dict[float, list[HistoryEntry]] = {}
    for entry in history:
        if entry.epoch and entry.mark:
            by_epoch.setdefault(entry.epoch, []).append(entry)
    return [
        figures.Mark(
            epoch,
            ", ".join(dict.fromkeys(entry.mark for entry in entries)),
            any(entry.serious for entry in entries),
        )
        for epoch, entries in sorted(by_epoch.items())
    ]


def _class_rows(
    test: SplitPredictions | None, predictions: Predictions | None
) -> list[dict[str, Any]]:
    if not test or not predictions:
        return []
    rows = evaluate.per_class(test, predictions.classes)
    if len(rows) > MAX_TABLE_CLASSES:
        rows = sorted(rows, key=lambda row: (row["count"] == 0, row["recall"]))[:MAX_TABLE_CLASSES]
    return rows


def _confusion(
    test: SplitPredictions | None, predictions: Predictions | None, plots: _Plots
) -> Markup | None:
    if not test or not predictions or test.multi_label:
        return None
    classes = predictions.classes
    if len(classes) <= MAX_MATRIX_CLASSES:
        counts = evaluate.confusion_matrix(test, len(classes))
        side = 4.6 if len(classes) <= 16 else 6.4
        return plots(
            "confusion", "Confusion matrix",
            lambda axes: figures.plot_confusion(axes, counts, classes), (side, side),
        )  # fmt: skip
    pairs = evaluate.most_confused(test, len(classes), MAX_PAIRS)
    if not pairs:
        return None
    return plots(
        "confusion", "Most confused classes",
        lambda axes: figures.plot_most_confused(axes, pairs, classes), (4.8, 1 + 0.26 * len(pairs)),
    )  # fmt: skip


def _confidence(test: SplitPredictions | None, plots: _Plots) -> dict[str, Any]:
    if not test or not len(test) or test.multi_label:
        return {"reliability": None, "coverage": None, "ece": None, "covered": []}
    calibration = evaluate.calibration(test)
    covered, accuracy = evaluate.risk_coverage(test)
    accuracies = [
        (share, float(accuracy[np.searchsorted(covered, share)])) for share in (0.5, 0.8, 0.9, 1)
    ]
    return {
        "reliability": plots(
            "reliability", "Reliability diagram",
            lambda axes: figures.plot_reliability(axes, calibration),
        ),
        "coverage": plots(
            "coverage", "Accuracy against coverage",
            lambda axes: figures.plot_coverage(axes, covered, accuracy),
        ),
        "ece": calibration.ece, "covered": accuracies,
    }  # fmt: skip


def _cards(
    predictions: Predictions,
    split: str,
    indices: NDArray[np.int64],
    others: NDArray[np.int64],
    report_input: ReportInput | None,
    png: Path,
    grad_cams: bool,
) -> list[Card]:
    """Return a card for each image, and write their contact sheet.

    `others` are the classes that are contrasted with the labels.
    """
    if not len(indices):
        png.unlink(missing_ok=True)
        return []
    answers = predictions.splits[split]
    pictures: list[list[Thumbnail]] = [[] for _ in indices]
    captions = [
        f"{predictions.classes[answers.labels[i]]} → {predictions.classes[k]}"
        for i, k in zip(indices, others, strict=True)
    ]
    if report_input:
        inputs = report_input.inputs(split, answers.samples[indices])
        pixels = images.pixels_of(inputs, report_input.splits.pipeline)
        heat_maps = report_input.grad_cams(inputs, others) if grad_cams else None
        for index, image in enumerate(pixels):
            pictures[index].append(images.thumbnail(image))
            if heat_maps is not None:
                pictures[index].append(images.thumbnail(images.overlay(image, heat_maps[index])))
        images.sheet(png, list(pixels), captions)
    return [
        Card(
            pictures[index],
            clip(predictions.classes[answers.labels[i]], 40),
            clip(predictions.classes[k], 40),
            _probability(answers, i, int(answers.labels[i])),
            _probability(answers, i, int(k)),
            clip(predictions.name(split, int(i))),
        )
        for index, (i, k) in enumerate(zip(indices, others, strict=True))
    ]


def _probability(predictions: SplitPredictions, index: int, k: int) -> float:
    """Return the probability of class `k` of an image; 0 if it was not stored."""
    if predictions.classes is None:
        return float(predictions.probabilities[index, k])
    return float(predictions.probabilities[index, predictions.classes[index] == k].sum())


def _mistakes(
    test: SplitPredictions | None,
    predictions: Predictions | None,
    report_input: ReportInput | None,
    folder: Path,
) -> list[Card]:
    if not test or not predictions or test.multi_label:
        return []
    worst = evaluate.worst_mistakes(test, MAX_MISTAKES)
    png = folder / "mistakes.png"
    return _cards(
        predictions, "test", worst, test.predicted[worst], report_input, png, grad_cams=True
    )


def _samples(
    test: SplitPredictions | None,
    predictions: Predictions | None,
    report_input: ReportInput | None,
    folder: Path,
) -> list[Card]:
    """Return test images sampled by the job's seed, whether the answer is right or wrong."""
    if not test or not predictions or not report_input or test.multi_label:
        return []
    sampled = rng.order(report_input.job.seed, 0, len(test))[:MAX_SAMPLES]
    png = folder / "samples.png"
    return _cards(
        predictions, "test", sampled, test.predicted[sampled], report_input, png, grad_cams=False
    )


def _issues(
    predictions: Predictions | None, report_input: ReportInput | None, folder: Path
) -> list[Any]:
    """Return (split, count, cards) of the held-out splits with likely wrong labels."""
    sections = []
    for split in ("test", "val"):
        if (
            not predictions
            or split not in predictions.splits
            or predictions.splits[split].multi_label
        ):
            continue
        issues = evaluate.label_issues(predictions.splits[split], len(predictions.classes))
        shown = issues[:MAX_ISSUES]
        cards = _cards(
            predictions, split, np.array([i.index for i in shown], np.int64),
            np.array([i.suggested for i in shown], np.int64), report_input,
            folder / f"labels-{split}.png", grad_cams=False,
        )  # fmt: skip
        if cards:
            sections.append((split, len(issues), cards))
    return sections


def _data(report_input: ReportInput | None, name: str) -> dict[str, Any] | None:
    """Return the numbers of images by split and class."""
    if not report_input:
        return None
    splits = report_input.splits
    size = len(splits.classes)
    counts = {s: class_counts(splits.labels(s), size) for s in SPLITS}
    rare = np.argsort(counts["train"], kind="stable")[:MAX_TABLE_CLASSES]
    order = range(size) if size <= MAX_TABLE_CLASSES else rare
    return {
        "name": name, "shape": tuple(splits.shape), "stored": tuple(splits.cache.shape),
        "splits": [
            (split, len(splits.labels(split)), int(count.min()), int(count.max()))
            for split, count in counts.items()
        ],
        "classes": [
            (clip(splits.classes[k]), *(int(counts[s][k]) for s in SPLITS)) for k in order
        ],
        "mean": [round(v, 4) for v in splits.pipeline.mean],
        "std": [round(v, 4) for v in splits.pipeline.std],
    }  # fmt: skip


def _warnings(report_input: ReportInput | None) -> list[str]:
    warnings = report_input.splits.warnings if report_input else []
    more = [f"and {len(warnings) - MAX_WARNINGS:,} more"] if len(warnings) > MAX_WARNINGS else []
    return [clip(text, 400) for text in warnings[:MAX_WARNINGS]] + more


def _batch(report_input: ReportInput | None, folder: Path) -> list[tuple[Thumbnail, str]] | None:
    """Return the first augmented training images, with their labels."""
    if not report_input:
        return None
    batch = images.training_batch(report_input)
    pixels = images.pixels_of(batch.images[: images.BATCH], report_input.splits.pipeline)
    classes = _label_names(batch.labels[: len(pixels)], report_input.splits.classes)
    if batch.mixed_labels is not None and batch.mix_weights is not None:
        others = _label_names(batch.mixed_labels, report_input.splits.classes)
        mixed = zip(classes, batch.mix_weights.tolist(), others, strict=False)
        classes = [f"{name} {share:.0%} + {other}" for name, share, other in mixed]
    images.sheet(folder / "augmented.png", list(pixels), classes)
    return [(images.thumbnail(p), name) for p, name in zip(pixels, classes, strict=True)]


def _label_names(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    return [clip(label_name(label, classes), 24) for label in labels.cpu().numpy()]


def _environment(run: Run) -> list[tuple[str, str]]:
    environment = read_json(run.folder / "environment.json") or {}
    packages = environment.pop("packages", {})
    rows = [(key, page.plain(value)) for key, value in environment.items() if value is not None]
    return rows + [(name, str(version)) for name, version in packages.items() if version]


def _commands(run: Run, result: dict[str, Any] | None) -> list[tuple[str, str]]:
    name = quote(str(run.location)) if run.copy else run.name
    if not result:
        return [(f"raycnn resume {name}", "continue from the last checkpoint")]
    longer = 2 * int(result["epochs"])
    return [
        (f"raycnn predict {name} pictures/", "classify a folder of pictures"),
        (f"raycnn eval {name} --split val", "any split, class by class"),
        (f"raycnn resume {name} train.epochs={longer}", "train longer"),
        (f"raycnn compare {name} OTHER", "compare two runs"),
    ]
