"""Images with any number of classes: the loss, the metrics, and a whole run."""

import json
import multiprocessing
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from raycnn.analysis.compare import compare
from raycnn.analysis.evaluate import evaluate_run
from raycnn.analysis.export import Deployed, export
from raycnn.analysis.exported_network import open_exported
from raycnn.analysis.predict import load_network
from raycnn.analysis.predictions_file import Predictions, read_predictions
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec, Train
from raycnn.data.loader import Batch
from raycnn.errors import Interrupted, JobFailed, SpecError
from raycnn.report.page import percent
from raycnn.runs.directory import Run
from raycnn.runs.preflight import resolve_job
from raycnn.runtime import distributed
from raycnn.search.preflight import check_search
from raycnn.training.metrics import build_metric_accumulator
from raycnn.training.multi_label import multi_label_scores
from raycnn.training.step import forward, positive_weights
from tests.support.jobs import TINY
from tests.support.multi_label import CLASSES, write_csv, write_lists
from tests.support.processes import Call, ended, free_port, workers
from tests.support.runs import distance, numbers, same, train, weights
from tests.support.searches import BASE, Read

EPOCHS = 4
SHARES = ([slice(0, 10), slice(10, 13)], [slice(13, 20)], [])  # of three workers


def gather_share(rank: int, port: int, folder: Path) -> None:
    """Measure this worker's share, and write what it knows of all in the end."""
    env = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in env.items()}
    distributed.init_process_group("gloo", 60)
    every, accumulator = (
        np.load(folder / "all.npz"),
        build_metric_accumulator(4, True, evaluating=True),
    )
    for rows in SHARES[rank]:
        labels, logits = (torch.from_numpy(every[key][rows]) for key in ("labels", "logits"))
        accumulator.add(torch.tensor(1.0), logits, labels, len(labels))
    seen = accumulator.all_reduce()
    found = seen.values | {"count": seen.count}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    write_csv(folder)
    return folder


def spec(data: Path, folder: Path, **changes: object) -> JobSpec:
    tree = TINY | {
        "data": {"name": "csv", "root": str(data), "test": 0.25, "val": 0.2},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "train": {"epochs": EPOCHS, "batch_size": 16},
        "storage": {"path": str(folder / "runs"), "report": False},
    }
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return job_from_tree(tree).change(dotted)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(spec(data, tmp_path_factory.mktemp("run"), storage__report=True))


def kept(found: Run) -> Predictions:
    return read_predictions(found.folder / "predictions.parquet")


def batch(labels: torch.Tensor, count: int) -> Batch:
    return Batch(torch.randn(len(labels), 1, 2, 2), labels, None, None, 0, len(labels), count)


def test_the_loss_is_the_binary_cross_entropy_of_every_class() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    part = batch(torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.uint8), 2)
    settings, weight = Train(epochs=1, label_smoothing=0.2), torch.tensor([1.0, 2.0, 3.0])
    logits, loss = forward(model, part, settings, weight)
    targets = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.1, 0.1]])
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
    assert loss.item() == pytest.approx(2 * expected.item())
    mixed = Batch(part.images, part.labels, part.labels.flip(0), torch.tensor([1.0, 0.3]), 0, 2, 2)
    soft = targets.clone()
    soft[1] = 0.3 * targets[1] + 0.7 * targets[0]
    expected = F.binary_cross_entropy_with_logits(logits, soft, pos_weight=weight)
    assert forward(model, mixed, settings, weight)[1].item() == pytest.approx(2 * expected.item())


def test_a_worker_without_a_share_adds_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    nothing = batch(torch.ones(1, 3, dtype=torch.uint8), 0)
    loss = forward(model, nothing, Train(epochs=1))[1]
    loss.backward()
    assert loss == 0 and all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    accumulator = build_metric_accumulator(3, multi_label=True, evaluating=True)
    accumulator.add(loss, torch.ones(1, 3), nothing.labels, 0)
    assert (accumulator.count, accumulator.all_reduce().marked) == (0, 0)


def test_positives_weigh_as_much_as_negatives() -> None:
    found = positive_weights("balanced", np.array([10, 50, 0]), 100)
    assert found is not None and found.tolist() == [9, 1, 100]
    with pytest.raises(SpecError, match="2 numbers for 3 classes"):
        positive_weights([1.0, 2.0], np.array([1, 1, 1]), 3)


def test_metrics_are_scikit_learns_and_leave_out_classes_without_an_image() -> None:
    noise = np.random.default_rng(0)
    labels = (noise.random((50, 5)) < 0.3).astype(np.uint8)
    probabilities = noise.random((50, 5)).round(1).astype(np.float32)  # with ties
    labels[:, 4] = 0
    found = multi_label_scores(labels, probabilities)
    some, said = labels[:, :4], probabilities[:, :4] >= 0.5
    expected = average_precision_score(some, probabilities[:, :4], average="macro")
    assert found.means["map"] == pytest.approx(expected, abs=1e-12)
    assert found.means["f1"] == pytest.approx(
        f1_score(labels, probabilities >= 0.5, average="micro")
    )
    assert found.means["f1_macro"] == pytest.approx(f1_score(some, said, average="macro"))
    assert found.per_class[4]["ap"] is None and found.per_class[4]["count"] == 0


def test_a_run_tests_every_image_once_and_says_so(data: Path, run: Run) -> None:
    result, rows = run.result() or {}, run.rows()
    test = kept(run).splits["test"]
    assert result["test"]["count"] == len(test) == len({*test.samples.tolist()}) == 30
    expected = average_precision_score(test.labels, test.probabilities, average="macro")
    assert result["test"]["map"] == pytest.approx(expected, abs=1e-12) and expected > 0.8
    best = max(rows, key=lambda row: (float(row["val/map"]), -float(row["val/loss"])))
    assert result["best_epoch"] == int(best["epoch"]) and "val/acc1" not in best
    again = evaluate_run(run, "test")
    assert again["test"]["map"] == result["test"]["map"]
    low, high = again["test"]["interval95"]
    assert [low, high] == result["test"]["interval95"] and low < expected < high
    assert result["val"]["interval95"] == evaluate_run(run, "val")["val"]["interval95"]
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-4)
    own = (run.per_class() or {})["per_class"]
    assert [row["class"] for row in own] == [row["class"] for row in again["per_class"]]


def test_resumed_job_equals_unbroken_one(data: Path, tmp_path: Path) -> None:
    job = spec(
        data, tmp_path, data__transforms=[{"name": "mixup"}], train__class_weights="balanced"
    )
    unbroken, broken = train(job), Run.create(job)
    with pytest.raises(Interrupted):
        train(job, broken, 8)
    train(job, broken)
    assert same(weights(unbroken), weights(broken))
    assert numbers(unbroken) == numbers(broken)


def test_shares_of_any_size_are_gathered_once(tmp_path: Path) -> None:
    """Three workers, one of which has no image."""
    noise = np.random.default_rng(1)
    labels = (noise.random((20, 4)) < 0.5).astype(np.uint8)
    logits = noise.normal(size=(20, 4)).astype(np.float32)
    np.savez(tmp_path / "all.npz", labels=labels, logits=logits)
    port, fork = free_port(), multiprocessing.get_context("fork")  # torch is imported once
    shares = [fork.Process(target=gather_share, args=(rank, port, tmp_path)) for rank in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        for share in shares:
            share.start()
    for share in shares:
        share.join(100)
    assert [share.exitcode for share in shares] == [0, 0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    probabilities = torch.sigmoid(torch.from_numpy(logits)).numpy()
    expected = average_precision_score(labels, probabilities, average="macro")
    f1 = f1_score(labels, probabilities >= 0.5, average="micro")
    assert found[0] == found[1] == found[2] and found[0]["count"] == 20
    assert [found[0]["map"], found[0]["f1"]] == pytest.approx([expected, f1], abs=1e-12)


@pytest.mark.slow
def test_two_workers_with_uneven_shares_equal_one(data: Path, tmp_path: Path) -> None:
    """Of 72 images 71 are one batch, so that a worker has no share of the next."""
    changes = {"train__batch_size": 71, "train__epochs": 2}
    one = train(spec(data, tmp_path, **changes))
    other = Run.create(spec(data, tmp_path, **changes)).folder / "job.yaml"
    codes, said = ended(workers(2, other, "workers.count=2", cwd=tmp_path))
    assert codes == {0}, said
    two = Run(one.folder.parent / "3")
    assert distance(weights(one), weights(two)) < 1e-5
    for split, own in kept(two).splits.items():
        expected = kept(one).splits[split]
        assert own.samples.tolist() == expected.samples.tolist()
        assert (own.labels == expected.labels).all()
    test = kept(two).splits["test"]
    expected_map = average_precision_score(test.labels, test.probabilities, average="macro")
    assert (two.result() or {})["test"]["map"] == pytest.approx(expected_map, abs=1e-12)


def test_lists_in_parquet_are_trained_on(tmp_path: Path) -> None:
    labels = write_lists(tmp_path)
    lists = {"name": "parquet", "root": str(tmp_path), "multi_label": True}
    found = train(spec(tmp_path, tmp_path, train__epochs=1).change({"data": lists}))
    own = kept(found)
    assert own.classes == CLASSES and own.splits["val"].multi_label
    for sample, marks in zip(own.splits["val"].samples, own.splits["val"].labels, strict=True):
        assert marks.shape == (3,) and marks.sum() <= max(map(len, labels)), sample


def test_the_command_line_names_the_classes(call: Call, data: Path, run: Run) -> None:
    code, out, _ = call("eval", run.folder)
    low, high = (run.result() or {})["test"]["interval95"]
    assert code == 0 and f"(95 %: {low:.2%} to {high:.2%}; F1 " in out
    assert "mAP" in out and all(name in out for name in CLASSES)
    test = kept(run)
    files, found = test.files["test"], test.splits["test"]
    assert files is not None
    for limit in (0.5, 0.9):
        words = ("--json", "--threshold", limit)
        code, out, _ = call("predict", run.folder, data / files[0], "--device", "cpu", *words)
        said = json.loads(out)["classes"]
        marks = found.probabilities[0] >= limit
        assert code == 0 and {*said} == {CLASSES[k] for k in np.flatnonzero(marks)}


def test_what_needs_one_class_per_image_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.class_weights: balanced"):
        resolve_job(spec(data, tmp_path, train__balanced=True))
    with pytest.raises(SpecError, match="is for one class per image"):
        resolve_job(spec(data, tmp_path, train__distillation={"teacher": "another"}))


def test_the_report_has_average_precisions_and_no_confusion(run: Run) -> None:
    page = (run.folder / "report.html").read_text()
    assert "test mAP" in page and "<th>AP</th>" in page
    low, high = (run.result() or {})["test"]["interval95"]
    assert f"95 % interval {percent(low)} to {percent(high)}" in page
    assert all(word not in page for word in ("Confusion matrix", "Reliability", "worst mistakes"))
    assert {path.stem for path in run.folder.glob("*.png")} == {"map", "f1", "loss", "augmented"}


def test_runs_are_listed_and_compared_by_map_without_mcnemar(
    call: Call, data: Path, run: Run, tmp_path: Path
) -> None:
    other = train(spec(data, tmp_path, seed=1, train__epochs=1))
    code, out, _ = call("compare", run.folder, other.folder, "--html", "page.html")
    value = f"{(run.result() or {})['test']['map']:.2%}"
    found = compare([run, other])
    (pair,) = found.paired
    assert code == 0 and found.runs[0].test == (run.result() or {})["test"]["map"]
    assert pair.p_value is None and "McNemar" in pair.refused
    page = (tmp_path / "page.html").read_text()
    low, high = (run.result() or {})["test"]["interval95"]
    assert "Validation mAP" in page and f"{percent(low)} to {percent(high)}" in page
    code, out, _ = call("list", "runs", "--runs", run.folder.parent.parent)
    assert code == 0 and value in out


def test_an_export_gives_the_probabilities_of_the_run(data: Path, run: Run, tmp_path: Path) -> None:
    made = export(run, "safetensors", folder=tmp_path / "out")
    test = kept(run).splits["test"]
    assert made.answers == 90 and made.hits == (test.predicted == test.labels).sum()
    files = kept(run).files["test"]
    assert files is not None
    (answer,) = open_exported(made.folder).predict(data / files[0])
    expected = dict(zip(CLASSES, test.probabilities[0].tolist(), strict=True))
    assert answer.probabilities == pytest.approx(expected, abs=1e-5)


def test_what_onnx_and_torch_export_is_sigmoids_of_pixels(run: Run) -> None:
    network = load_network(run.weights("best"), torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    probabilities, logits = Deployed(network).eval()(pixels)
    assert torch.equal(probabilities, torch.sigmoid(logits))
    assert torch.allclose(probabilities, network(pixels)[0], atol=1e-5)


def test_an_export_with_other_answers_is_not_written(run: Run, tmp_path: Path) -> None:
    path = run.folder / "per_class.json"
    before = path.read_text()
    tree = json.loads(before)
    tree["per_class"][0]["predicted"] += 1
    path.write_text(json.dumps(tree))
    try:
        with pytest.raises(JobFailed, match="are correct"):
            export(run, "safetensors", folder=tmp_path / "out")
    finally:
        path.write_text(before)
    assert not (tmp_path / "out").exists()


def test_a_search_compares_by_what_is_measured(read: Read, data: Path) -> None:
    digits = "{name: digits, limit: 200, transforms: [{name: resize, size: 12}]}"
    base = BASE.replace(digits, f"{{name: csv, root: {data}}}")
    tune = "space: {optimizer.lr: {loguniform: [1e-3, 1]}}, trials: 2"
    with pytest.raises(SpecError, match="val/acc1 .*csv.*val/map"):
        check_search(read(f"tune: {{{tune}}}\n", base=base))
    found = read(f"tune: {{{tune}, metric: val/map}}\n", base=base)
    check_search(found)
    assert found.tune.sign == 1


def test_images_of_several_classes_are_counted_once(call: Call, data: Path) -> None:
    code, out, _ = call("data", "csv", "--root", data)
    assert code == 0 and out.startswith("120 images of 3x12x12, 3 classes")
