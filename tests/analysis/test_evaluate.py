"""What is measured of predictions, against scikit-learn, by hand, and on labels that are wrong."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from raycnn.analysis import evaluate, predictions_file
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, Interrupted, SpecError
from raycnn.training import checkpoint_folder
from raycnn.training.predictions import SplitPredictions
from raycnn.training.uncertainty import confidence_interval
from tests.support.processes import Call
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]
NAMES = ("a", "b", "c", "d")


def made(count: int = 400, classes: int = 4, sharp: float = 2.0, seed: int = 0) -> SplitPredictions:
    """Predictions of a network that is right more often than not."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, classes, count)
    logits = numbers.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.0
    odds = np.exp(sharp * logits)
    probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    return SplitPredictions(np.arange(count), labels, probabilities.argmax(1), probabilities)


def test_confusion_and_classes_are_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    own = made()
    expected = confusion_matrix(own.labels, own.predicted, labels=range(4))
    assert evaluate.confusion_matrix(own, 4).tolist() == expected.tolist()
    pairs = np.zeros((4, 4), int)
    for label, predicted, count in evaluate.confusion_pairs(own, 4):
        pairs[label, predicted] = count
    assert pairs.tolist() == expected.tolist()
    rows = evaluate.per_class(own, NAMES)
    columns = precision_recall_fscore_support(own.labels, own.predicted)
    for key, column in zip(("precision", "recall", "f1", "count"), columns, strict=True):
        assert [row[key] for row in rows] == pytest.approx(column.tolist())
    for k, row in enumerate(rows):
        low, high = confidence_interval(expected[k, k], expected[k].sum())
        assert row["recall_interval95"] == [low, high] and low < row["recall"] < high


def test_the_most_confused_are_the_largest_off_the_diagonal() -> None:
    own = made()
    off = evaluate.confusion_matrix(own, 4) * (1 - np.eye(4, dtype=int))
    label, predicted, count = evaluate.most_confused(own, 4, 3)[0]
    assert count == off.max() == off[label, predicted]
    assert len(evaluate.most_confused(own, 4, 3)) == 3


def test_metrics_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

    own = made(classes=9)
    found = evaluate.split_metrics(own)
    whole = own.probabilities.astype(np.float64)
    whole /= whole.sum(1, keepdims=True)
    assert found["acc1"] == pytest.approx(accuracy_score(own.labels, own.predicted))
    assert found["acc5"] == pytest.approx(top_k_accuracy_score(own.labels, whole, k=5))
    assert found["loss"] == pytest.approx(log_loss(own.labels, whole), rel=1e-5)
    few = evaluate.split_metrics(predictions_file.largest(own, 6))
    assert few == {**found, "loss": None}, "the largest probabilities tell all but the loss"


def test_calibration_error_is_the_mean_gap_by_hand() -> None:
    own = made(sharp=4.0)
    sure, right = own.probabilities.max(1), own.predicted == own.labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - sure[inside].mean())
    assert evaluate.calibration(own).ece == pytest.approx(total / len(own), abs=1e-6)
    exact = SplitPredictions(
        np.arange(4), np.zeros(4, int), np.array([0, 0, 0, 1]),
        np.array([[0.75, 0.25]] * 3 + [[0.25, 0.75]], np.float32),
    )  # fmt: skip
    assert evaluate.calibration(exact).ece == pytest.approx(0, abs=1e-7)


def test_coverage_ends_at_the_accuracy_and_begins_with_the_surest() -> None:
    own = made()
    covered, accuracy = evaluate.risk_coverage(own)
    assert covered[-1] == 1 and accuracy[-1] == pytest.approx((own.predicted == own.labels).mean())
    half = np.argsort(-own.probabilities.max(1), kind="stable")[:200]
    assert accuracy[np.searchsorted(covered, 0.5)] == pytest.approx(
        (own.predicted == own.labels)[half].mean(), abs=0.01
    )
    assert (np.diff(covered) > 0).all() and len(covered) <= evaluate.MAX_POINTS


def test_the_worst_mistakes_are_the_surest() -> None:
    own = made()
    worst = evaluate.worst_mistakes(own, 10)
    assert (own.predicted[worst] != own.labels[worst]).all()
    sure = own.probabilities[worst].max(1)
    wrong = own.probabilities[own.predicted != own.labels].max(1)
    assert sure.tolist() == sorted(wrong, reverse=True)[:10]


@pytest.mark.parametrize("top", [None, 3])
def test_labels_that_were_made_wrong_are_found(top: int | None) -> None:
    own = made(sharp=6.0)
    right = own.predicted == own.labels
    flipped = np.flatnonzero(right & (own.probabilities.max(1) > 0.99))[:12]
    labels = own.labels.copy()
    labels[flipped] = (labels[flipped] + 1) % 4
    spoiled = SplitPredictions(own.samples, labels, own.predicted, own.probabilities)
    if top:
        spoiled = predictions_file.largest(spoiled, top)
    issues = evaluate.label_issues(spoiled, 4)
    found = {issue.index: issue for issue in issues}
    assert set(flipped.tolist()) <= found.keys()
    assert all(found[i].suggested == own.labels[i] for i in flipped)
    ranks = [issue.label_probability for issue in issues]
    assert ranks == sorted(ranks)
    assert all(spoiled.labels[i] != issue.suggested for i, issue in found.items())


def test_evaluation_reads_what_is_kept_and_makes_what_is_not(
    job: MakeJob, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(job())
    made_for: list[str] = []
    predict_run = evaluate.predict_run

    def counted(run: object, split: str, *rest: object) -> object:
        made_for.append(split)
        return predict_run(run, split, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "predict_run", counted)
    for split in ("test", "val", "train", "train"):
        ended, out, _ = call("eval", run.folder, "--split", split, "--json")
        assert ended == 0, out
    assert made_for == ["train"], "val and test are kept by the run, train by its first evaluation"
    read = json.loads(call("eval", run.folder, "--json")[1])
    anew = json.loads(call("eval", run.folder, "--json", "--device", "cpu")[1])
    assert made_for == ["train", "test"]
    assert read["test"]["acc1"] == anew["test"]["acc1"] == (run.result() or {})["test"]["acc1"]
    assert read["confusion"] == anew["confusion"] == (run.per_class() or {})["confusion"]
    assert set(predictions_file.read_predictions(run.folder / predictions_file.FILE).splits) == {
        "val",
        "test",
        "train",
    }


def test_predictions_of_weights_that_are_no_longer_the_best_are_not_used(job: MakeJob) -> None:
    run = train(job(train__epochs=1, schedule="constant", optimizer__lr=0.02))
    assert evaluate.evaluate_run(run, "test")["epoch"] == 1
    longer = job(train__epochs=4, schedule="constant", optimizer__lr=0.02)
    with pytest.raises(Interrupted):
        train(longer, run, stop_at=14)
    best = checkpoint_folder.read_state(run.weights("best"))["epoch"]
    assert best > 1, "the first epoch should not be the best"
    assert predictions_file.read_predictions(run.folder / predictions_file.FILE).epoch == 1
    assert evaluate.evaluate_run(run, "test")["epoch"] == best


def test_a_run_that_may_only_be_read_is_evaluated_and_a_split_without_images_is_not(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(job(train__epochs=1, data__val=0.0))

    def refuse() -> None:
        raise EnvironmentUnavailable("storage.path: access denied")

    monkeypatch.setattr(run, "flush", refuse)
    assert evaluate.evaluate_run(run, "train")["train"]["count"] == 200
    with pytest.raises(SpecError, match="has no val images"):
        evaluate.evaluate_run(run, "val")
