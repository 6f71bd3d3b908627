"""Weights to begin with, from files as people have them."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raycnn import models
from raycnn.config.schema import JobSpec, Model
from raycnn.data.splits import open_splits
from raycnn.errors import DataError, SpecError
from raycnn.models.weights import published_normalization
from raycnn.runs.preflight import check_job
from raycnn.shape import Shape
from raycnn.training import pretrained
from raycnn.training.callbacks import WeightsLoaded
from tests.support.processes import Call
from tests.support.runs import distance, happened, same, train, weights

IMAGE = Shape(3, 32, 32)


def build(classes: int = 10) -> torch.nn.Module:
    return models.build_model(Model(name="resnet18"), IMAGE, classes)


def load(model: torch.nn.Module, source: object) -> str:
    """Load weights into a network, and return what was done to them."""
    loaded = pretrained.load_pretrained(model, Model(name="resnet18", weights=str(source)))
    return "; ".join([*loaded.changes, *loaded.new_layers])


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped by DDP"])
def test_weights_come_from_a_file(form: str, tmp_path: Path) -> None:
    theirs, ours = build(), build()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(theirs.state_dict(), path)
    elif form == "pt":
        torch.save(theirs.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{k}": t for k, t in theirs.state_dict().items()}}, path)
    load(ours, path)
    assert same(theirs.state_dict(), ours.state_dict())


def wrapped(form: str, tensors: dict[str, torch.Tensor]) -> Any:
    return {
        "compiled": {f"_orig_mod.{key}": t for key, t in tensors.items()},
        "compiled in DDP": {f"module._orig_mod.{key}": t for key, t in tensors.items()},
        "a compiled layer": {
            k.replace("layer1.", "layer1._orig_mod."): t for k, t in tensors.items()
        },
        "Lightning": {"state_dict": {f"model.{k}": t for k, t in tensors.items()}, "epoch": 3},
        "Lightning with a loss": {
            "state_dict": {f"net.{k}": t for k, t in tensors.items()} | {"loss.w": torch.ones(2)}
        },
        "a training loop": {"model_state_dict": tensors, "optimizer_state_dict": {"lr": 0.1}},
        "one mapping": {"ema_weights": tensors, "epoch": 3, "args": {"lr": 0.1}},
        "state_dict and its average": {"state_dict": tensors, "state_dict_ema": tensors},
        "DDP inside": {k.replace("layer1.", "layer1.module."): t for k, t in tensors.items()},
        "averaged": {"n_averaged": torch.tensor(3)}
        | {f"module.{k}": t for k, t in tensors.items()},
        "before num_batches_tracked": {k: t for k, t in tensors.items() if "num_batches" not in k},
    }[form]


@pytest.mark.parametrize(
    "form",
    [
        "compiled", "compiled in DDP", "a compiled layer", "Lightning", "Lightning with a loss",
        "a training loop", "one mapping", "state_dict and its average", "averaged",
        "DDP inside", "before num_batches_tracked",
    ],
)  # fmt: skip
def test_weights_come_as_other_tools_save_them(form: str, tmp_path: Path) -> None:
    theirs, ours = build(), build()
    torch.save(wrapped(form, theirs.state_dict()), tmp_path / "w.pt")
    choice = Model(name="resnet18", weights=str(tmp_path / "w.pt"))
    said = load(ours, tmp_path / "w.pt")
    assert same(theirs.state_dict(), ours.state_dict())
    assert all(change in said for change in pretrained.check_weights(ours, choice))
    if form not in ("a training loop", "one mapping", "state_dict and its average"):
        assert pretrained.check_weights(ours, choice), "what was done is said"


def test_a_prefix_is_stripped_from_safetensors_too(tmp_path: Path) -> None:
    theirs, ours = build(), build()
    save_file(
        {f"module.{k}": t for k, t in theirs.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert "module" in load(ours, tmp_path / "w.safetensors")
    assert same(theirs.state_dict(), ours.state_dict())


def test_of_several_mappings_without_a_usual_name_none_is_guessed(tmp_path: Path) -> None:
    tensors = build().state_dict()
    torch.save({"student": tensors, "teacher": tensors}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="student, teacher"):
        load(build(), tmp_path / "w.pt")


def test_gray_images_see_color_weights_as_a_gray_color_image_would(tmp_path: Path) -> None:
    theirs = build()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = models.build_model(Model(name="resnet18"), Shape(1, 32, 32), 10)
    assert "conv1.weight" in load(ours, tmp_path / "w.pt")
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(gray.expand(2, 3, 32, 32))
        assert torch.allclose(ours.eval()(gray), expected, atol=1e-4)
    imagenet = Model(name="resnet18", weights="imagenet")
    mean, std = published_normalization(imagenet, 1) or ([], [])
    assert mean == pytest.approx([0.449]) and std == pytest.approx([0.226])


def test_another_number_of_classes_gets_a_new_last_layer(tmp_path: Path) -> None:
    theirs, ours = build(1000), build(5)
    fresh = ours.fc.weight.clone()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    assert "fc.weight; fc.bias" in load(ours, tmp_path / "w.safetensors")
    assert torch.equal(ours.fc.weight, fresh) and torch.equal(
        ours.conv1.weight, theirs.conv1.weight
    )


def test_weights_of_another_network_are_refused_with_their_shapes(tmp_path: Path) -> None:
    save_file(
        models.build_model(Model(name="lenet"), IMAGE, 10).state_dict(), tmp_path / "w.safetensors"
    )
    with pytest.raises(SpecError, match=r"bn1.bias: .*64"):
        load(build(), tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (open, ("/tmp/raycnn-was-here", "w"))


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(DataError, match="w.pt"):
        load(build(), tmp_path / "w.pt")
    torch.save({"weights": [1, 2]}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="x.pt holds no state dict"):
        load(build(), tmp_path / "x.pt")
    assert not Path("/tmp/raycnn-was-here").exists()


def test_a_file_or_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no .*w.pt"):
        load(build(), tmp_path / "w.pt")
    with pytest.raises(SpecError, match="is not a run folder"):
        load(build(), tmp_path)


def cached(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **extra: bool) -> dict:
    """Stands in for a download: random weights, where torch keeps what it has downloaded."""
    from torchvision.models import get_model, get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    peer = get_model(name, **extra).state_dict()
    url = get_model_weights(name).DEFAULT.url
    torch.save(peer, folder / "hub" / "checkpoints" / Path(url).name)
    return peer


def test_imagenet_names_torchvisions_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = cached("googlenet", tmp_path, monkeypatch, init_weights=True)
    choice = Model(name="googlenet", kernel=3, weights="imagenet")
    ours = models.build_model(choice, Shape(3, 96, 96), 5)
    assert pretrained.load_pretrained(ours, choice).new_layers
    assert torch.equal(
        ours.inception4a.branch3[1].conv.weight, peer["inception4a.branch3.1.conv.weight"]
    )


def test_without_a_network_the_download_fails_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="https://.*resnet18.*model.weights"):
        load(build(), "imagenet")


def test_a_network_that_torchvision_never_trained_is_refused() -> None:
    model = models.build_model(Model(name="lenet"), IMAGE, 10)
    with pytest.raises(SpecError, match="lenet"):
        pretrained.check_weights(model, Model(name="lenet", weights="imagenet"))


def test_a_form_that_published_weights_do_not_fit_is_refused_before_they_are_fetched() -> None:
    for size, fits in ((32, False), (64, True)):
        choice = Model(name="resnet18", weights="imagenet")
        with torch.device("meta"):
            model = models.build_model(choice, Shape(3, size, size), 5)
        if fits:
            pretrained.check_weights(model, choice)
        else:
            with pytest.raises(SpecError, match="conv1.weight: .*stem: large"):
                pretrained.check_weights(model, choice)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_file_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(DataError, match="w.pt cannot be loaded"):
        load(build(), tmp_path / "w.pt")


def test_images_are_normalized_as_the_weights_expect(job: Callable[..., JobSpec]) -> None:
    from torchvision import models as theirs

    for name in theirs.list_models(module=theirs):
        transforms = theirs.get_model_weights(name).DEFAULT.transforms()
        found = published_normalization(Model(name=f"torchvision:{name}", weights="imagenet"))
        # These two change what they are given to (x - 0.5) / 0.5 themselves; raycnn gives them that.
        own = ([0.5] * 3, [0.5] * 3) if name in ("googlenet", "inception_v3") else None
        assert found == (own or (transforms.mean, transforms.std)), name
    data = {"name": "synthetic", "size": 64, "train": 50, "test": 10}
    spec = job(data=data, model={"name": "resnet18", "weights": "imagenet"})
    assert open_splits(spec).pipeline.mean == [0.485, 0.456, 0.406]
    assert open_splits(spec.change({"model": "resnet18"})).pipeline.mean != [0.485, 0.456, 0.406]


def test_an_average_of_weights_begins_with_those_that_are_given(
    job: Callable[..., JobSpec],
) -> None:
    first = train(job(train__epochs=1))
    model = {"name": "lenet", "activation": "relu", "weights": str(first.folder)}
    still = train(job(train__epochs=1, train__ema=0.9, optimizer__lr=1e-30, model=model))
    assert distance(weights(still), weights(first, "best")) < 1e-6


def test_a_job_begins_with_the_best_weights_of_a_run(job: Callable[..., JobSpec]) -> None:
    """All frozen but the head, which is trained: what is below it is the first run's, bit for bit."""
    first = train(job(train__epochs=1))
    model = {"name": "lenet", "activation": "relu", "weights": str(first.folder)}
    second = train(job(train__epochs=1, model=model | {"freeze": ["stage1", "stage2", "hidden"]}))
    then, now = weights(first, "best"), weights(second)
    assert {k for k in now if not torch.equal(now[k], then[k])} == {"head.weight", "head.bias"}
    assert happened(second, WeightsLoaded)[0].source == str(first.folder)


def test_a_backbone_without_the_last_layer_gets_a_new_one(tmp_path: Path) -> None:
    theirs, ours = build(), build()
    fresh = ours.fc.weight.clone()
    for prefix, head in (("module.encoder.", None), ("backbone.", "head.fc.")):
        tensors = {
            (head or "") + k[3:] if k.startswith("fc.") else prefix + k: t
            for k, t in theirs.state_dict().items()
            if head or not k.startswith("fc.")
        }
        torch.save({"state_dict": tensors}, tmp_path / "w.pt")
        loaded = pretrained.load_pretrained(
            ours, Model(name="resnet18", weights=str(tmp_path / "w.pt"))
        )
        assert loaded.new_layers == ["fc.weight", "fc.bias"]
        assert torch.equal(ours.conv1.weight, theirs.conv1.weight)
        assert torch.equal(ours.fc.weight, fresh)


def test_a_run_resumes_without_the_weights_it_began_with(
    job: Callable[..., JobSpec], call: Call, tmp_path: Path
) -> None:
    first = train(job(train__epochs=1))
    shutil.copytree(first.folder, tmp_path / "first")
    begun = check_job(job(model__weights="first", name="second")).job  # `call` has gone to tmp_path
    assert begun.model.weights == str(tmp_path / "first"), "workers elsewhere find it too"
    run = train(begun.change({"train.epochs": 1}))
    shutil.rmtree(tmp_path / "first")
    code, _, err = call("resume", run.folder, "train.epochs=2")
    assert code == 0 and len(run.rows()) == 2, err
    code, _, err = call("train", run.folder / "job.yaml")
    assert code == 2 and "model.weights" in err
