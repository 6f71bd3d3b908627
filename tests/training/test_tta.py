"""Predictions that are averaged over an image and its mirror image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycnn.analysis.evaluate import evaluate_run, stored_predictions
from raycnn.analysis.export import export
from raycnn.analysis.exported_network import open_exported
from raycnn.analysis.predict import load_network
from raycnn.config.schema import JobSpec
from raycnn.data.splits import open_splits
from raycnn.errors import SpecError
from raycnn.models.lenet import LeNet
from raycnn.runs.compatibility import validate_resume
from raycnn.runs.directory import Run
from raycnn.search.estimate import epoch_s
from tests.support.runs import same, train, weights
from tests.support.searches import SPACE, Read

MakeJob = Callable[..., JobSpec]
TTA: dict[str, Any] = {"train__tta": "horizontal_flip", "train__epochs": 1}


def logits_of(run: Run, images: Tensor) -> Tensor:
    return load_network(run.weights("best"), torch.device("cpu"))(images)[1]


def test_the_logits_are_those_of_an_image_and_its_mirror_image(job: MakeJob) -> None:
    plain, averaged = train(job(train__epochs=1)), train(job(**TTA))
    assert same(weights(plain), weights(averaged)), "training is the same"
    splits = open_splits(averaged.job())
    images = torch.from_numpy(splits.cache.splits["test"].images[:].copy()).permute(0, 3, 1, 2)
    network = load_network(plain.weights("best"), torch.device("cpu"))
    inputs = network.pipeline(images, torch.zeros(len(images), 0))
    with torch.inference_mode():
        expected = (network.module(inputs) + network.module(inputs.flip(3))) / 2
    assert (expected - logits_of(plain, images)).abs().max() > 1e-2
    assert (expected - logits_of(averaged, images)).abs().max() < 1e-5

    stored = stored_predictions(averaged)
    evaluate_run(averaged, "test", device="cpu")
    for predictions in (stored, stored_predictions(averaged)):
        assert predictions
        probabilities = predictions.splits["test"].probabilities
        assert np.allclose(probabilities, expected.softmax(1), atol=1e-5)
    hits = (expected.argmax(1).numpy() == splits.labels("test")).mean()
    assert averaged.result()["test"]["acc1"] == hits  # type: ignore[index]

    assert stored
    val = stored.splits["val"]
    loss = -np.log(val.probabilities[np.arange(len(val)), val.labels]).mean()
    losses = [run.rows()[0]["val/loss"] for run in (averaged, plain)]
    assert float(losses[0]) == pytest.approx(loss, abs=1e-5) and losses[0] != losses[1]


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torch"])
def test_an_exported_network_averages_too(job: MakeJob, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install 'raycnn[onnx]'")
    run = train(job(**TTA))
    exported_to = export(run, kind).folder
    exported = open_exported(exported_to)
    pixels = torch.randint(256, (3, *exported.image_format.shape), dtype=torch.uint8)
    both = exported(pixels)[1], exported(pixels.flip(3))[1]
    assert (both[0] - both[1]).abs().max() < 1e-4
    assert (both[0] - logits_of(run, pixels)).abs().max() < 1e-4
    if kind == "safetensors":
        card = (exported_to / "README.md").read_text()
        assert "with test-time augmentation" in card and "mirror image." in card


@pytest.mark.parametrize("tta", [None, "horizontal_flip"])
def test_a_run_keeps_its_averaging(job: MakeJob, tta: str | None) -> None:
    run = train(job(train__epochs=1, train__tta=tta))
    assert validate_resume(run, job(train__epochs=2, train__tta=tta)) == 1
    other = None if tta else "horizontal_flip"
    with pytest.raises(SpecError, match="train.tta: cannot change once the run has started"):
        validate_resume(run, job(train__epochs=2, train__tta=other))


def test_the_estimate_of_a_search_counts_both_passes(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[torch.Size] = []
    forward = LeNet.forward

    def count(network: LeNet, images: Tensor) -> Tensor:
        passes.append(images.shape)
        return forward(network, images)

    monkeypatch.setattr(LeNet, "forward", count)
    epoch_s(read(), torch.device("cpu"))
    once = len(passes)
    epoch_s(read(SPACE, "train.tta=horizontal_flip"), torch.device("cpu"))
    assert (once, len(passes) - once) == (4, 6), "training and validation are each run twice"
