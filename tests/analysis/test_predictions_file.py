"""What a run keeps of its predictions: one row for each image, from however many workers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raycnn.analysis import predictions_file
from raycnn.analysis.evaluate import confusion_pairs
from raycnn.config.schema import JobSpec
from raycnn.data.splits import open_splits
from raycnn.errors import DataError
from raycnn.runs.directory import Run
from raycnn.training.callbacks import Warned
from raycnn.training.predictions import TOP, PredictionAccumulator, SplitPredictions
from tests.support.processes import ended, workers
from tests.support.runs import happened, train

MakeJob = Callable[..., JobSpec]


def kept(run: Run) -> predictions_file.Predictions:
    return predictions_file.read_predictions(run.folder / predictions_file.FILE)


def test_predictions_are_of_every_image_once_and_agree_with_the_result(job: MakeJob) -> None:
    spec = job(train__epochs=4, optimizer__lr=0.3)
    run = train(spec)
    found, result, splits = kept(run), run.result() or {}, open_splits(spec)
    assert found.classes == splits.classes and found.epoch == result["best_epoch"]
    for split in ("val", "test"):
        own, (_, rows) = found.splits[split], splits.members[split]
        assert own.samples.tolist() == rows.tolist()
        assert own.labels.tolist() == splits.labels(split).tolist()
        assert np.allclose(own.probabilities.sum(1), 1)
        assert own.predicted.tolist() == own.probabilities.argmax(1).tolist()
    pairs = confusion_pairs(found.splits["test"], 10)
    assert pairs == (run.per_class() or {})["confusion"]
    val = found.splits["val"]
    best = run.rows()[result["best_epoch"] - 1]
    assert np.mean(val.labels == val.predicted) == pytest.approx(float(best["val/acc1"]))


def test_two_workers_keep_the_predictions_that_one_keeps(job: MakeJob, tmp_path: Path) -> None:
    one = train(job(train__batch_size=31))  # shares differ, and one batch ends short
    spec = Run.create(job(train__batch_size=31)).folder / "job.yaml"
    codes, said = ended(workers(2, spec, "workers.count=2", cwd=tmp_path))
    assert codes == {0}, said
    both = kept(one), kept(Run(one.folder.parent / "3"))
    for split, own in both[0].splits.items():
        other = both[1].splits[split]
        assert own.samples.tolist() == other.samples.tolist()
        assert np.allclose(own.probabilities, other.probabilities, atol=1e-5)


def test_a_run_keeps_its_result_when_predictions_cannot_be_written(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(predictions_file, "write_predictions", full)
    run = train(job(train__epochs=1))
    assert run.result() and not (run.folder / predictions_file.FILE).exists()
    assert any("No space left" in event.text for event in happened(run, Warned))


def test_of_too_many_probabilities_the_largest_are_kept(job: MakeJob, tmp_path: Path) -> None:
    spec = job()
    loader = open_splits(spec).loader("test", spec, torch.device("cpu"), training=False)
    logits = torch.randn(loader.samples, 50, generator=torch.Generator().manual_seed(0))
    found = []
    for limit in (loader.samples * 50, loader.samples * 50 - 1):
        accumulator = PredictionAccumulator(loader, 50, limit)
        for start in range(0, loader.samples, 100):
            accumulator.add(start, logits[start : start + 100])
        found.append(accumulator.gather(torch.device("cpu")))
    whole, top = found
    assert whole and top and top.classes is not None and top.probabilities.shape[1] == TOP
    assert np.array_equal(top.classes[:, 0], whole.predicted)
    largest = predictions_file.largest(whole)
    assert np.array_equal(largest.probabilities, top.probabilities)

    names = tuple(map(str, range(50)))
    file = tmp_path / "p.parquet"
    both = {"val": whole, "test": top}
    predictions_file.write_predictions(
        file, predictions_file.Predictions(names, 1, both, {"val": None, "test": None})
    )
    again = predictions_file.read_predictions(file)
    assert np.array_equal(again.splits["val"].classes, top.classes), "a file has one form"


def test_the_file_is_plain_parquet_with_names_of_files(tmp_path: Path) -> None:
    rows = np.arange(3)
    own = SplitPredictions(rows, rows % 2, rows % 2, np.full((3, 2), 0.5, np.float32))
    names = np.array(["a/1.png", "b/\U0001f33b.png", "a/<b>.png"], object)
    file = tmp_path / "predictions.parquet"
    predictions_file.write_predictions(
        file, predictions_file.Predictions(("a", "b"), 2, {"test": own}, {"test": names})
    )
    table = pq.read_table(file)
    assert table.column_names == ["split", "sample", "file", "label", "predicted", "probabilities"]
    assert table["file"].to_pylist() == names.tolist()
    assert json.loads(table.schema.metadata[b"raycnn"]) == {"classes": ["a", "b"], "epoch": 2}
    found = predictions_file.read_predictions(file)
    assert found.name("test", 1) == names[1]
    assert replace(found, files={"test": None}).name("test", 1) == "row 1"


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_a_missing_or_damaged_file_is_bad_data(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "predictions.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match="predictions.parquet"):
        predictions_file.read_predictions(file)
