"""Verify an exported network against its run, before the export is put in place.

Its logits must equal the run's on batches of several sizes, and its number of correct test images
that of result.json. An ONNX file is checked by onnx as well.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raycnn.analysis.evaluate import evaluate_run
from raycnn.analysis.predict import BATCH_SIZE, Classifier, Network
from raycnn.data.splits import Splits
from raycnn.errors import DataError, JobFailed
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.multi_label import THRESHOLD

BATCH_SIZES = (1, 2, 7)  # for comparing logits
TOLERANCE = 1e-3  # of logits, relative to the largest


def check_onnx(path: Path) -> None:
    """Check that a file is valid ONNX, shapes included. Raises an error of onnx if it is not."""
    import onnx

    onnx.checker.check_model(path, full_check=True)


def compare_logits(exported: Classifier, network: Network, splits: Splits) -> float:
    """Return the largest relative difference of logits. Raises JobFailed above TOLERANCE."""
    images, _ = next(_test_batches(splits, max(BATCH_SIZES)))
    images = images.repeat(max(BATCH_SIZES), 1, 1, 1)  # the test split may have only one image
    largest = 0.0
    for size in BATCH_SIZES:
        expected, logits = network(images[:size])[1], exported(images[:size])[1]
        if expected.shape != logits.shape:
            raise JobFailed(f"not exported: a batch of {size} gives {tuple(logits.shape)} logits")
        scale = max(1.0, expected.abs().max().item())
        largest = max(largest, (expected - logits).abs().max().item() / scale)
    if not largest <= TOLERANCE:
        raise JobFailed(f"not exported: its logits differ from the run's by {largest:.2g}")
    return largest


def compare_hits(
    exported: Classifier, network: Network, splits: Splits, expected: int, run: Run
) -> tuple[int, int]:
    """Return the hits and answers of the test split. Raises JobFailed for unexpected hits.

    A run in lower precision, or on an accelerator, may round a tie differently: then every image
    must be classified as by this network on the CPU.
    """
    hits = answers = differ = 0
    may_differ = run.job().train.precision != "fp32" or bool(run_devices(run))
    for pixels, labels in _test_batches(splits, BATCH_SIZE):
        predicted = _answers(exported, pixels)
        hits += int((predicted == labels).sum())
        answers += labels.numel()
        if may_differ:
            differ += int((predicted != _answers(network, pixels)).sum())
    if hits != expected and (differ or not may_differ):
        raise JobFailed(
            f"not exported: {hits} of {answers} answers on the test images are correct, but "
            f"{expected} in the run's result"
        )
    return hits, answers


def expected_hits(run: Run, weights: str, root: str | None) -> int:
    """Return the number of correct answers on the test images by the run's result."""
    result = run.result()
    if not result:
        if run.state() == "running":
            raise DataError(f"{run.name} is being trained, and has no result yet")
        raise DataError(f"{run.name} has no result yet; finish it with `{run.command('resume')}`")
    index = checkpoint_folder.read_index(run.checkpoints)
    if index.get(weights) != index.get("best"):
        result = evaluate_run(run, "test", weights, "cpu", root)
    count = result["test"]["count"]
    if "acc1" in result["test"]:
        return round(result["test"]["acc1"] * count)
    rows = result.get("per_class") or (run.per_class() or {}).get("per_class", [])
    wrong = (r["count"] + r["predicted"] - 2 * round(r["recall"] * r["count"]) for r in rows)
    return count * len(rows) - sum(wrong)


def run_devices(run: Run) -> list[str]:
    """Return the accelerators of the machine that a run was trained on."""
    try:
        return list(json.loads((run.folder / "environment.json").read_text())["devices"])
    except (OSError, ValueError, KeyError):
        return []


def _test_batches(splits: Splits, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every test image (B, C, H, W) uint8 once, with its label (B,)."""
    source_split, members = splits.members["test"]
    split = splits.cache.splits[source_split]
    for start in range(0, len(members), size):
        rows = members[start : start + size]
        images = torch.from_numpy(np.ascontiguousarray(split.images[rows]))
        yield images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(split.labels[rows])


def _answers(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Return the predicted classes (B,), or multi-label (B, K) with 1 for those predicted."""
    probabilities = classifier(pixels)[0]
    if classifier.multi_label:
        return (probabilities >= THRESHOLD).byte()
    return probabilities.argmax(1)
