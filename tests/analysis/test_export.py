"""Files that take a network away, read by the programs they are for."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raycnn import models
from raycnn.analysis import export as exporting
from raycnn.analysis import model_card, predict
from raycnn.analysis.exported_network import open_exported
from raycnn.analysis.predict import Network, find_pictures
from raycnn.config.load import job_from_tree
from raycnn.config.schema import Model
from raycnn.config.yaml_file import load_yaml
from raycnn.data.splits import open_splits
from raycnn.errors import DataError, EnvironmentUnavailable, JobFailed, SpecError
from raycnn.runs.directory import Run
from raycnn.shape import Shape
from tests.support.images import write_pictures
from tests.support.jobs import TINY
from tests.support.processes import Call
from tests.support.runs import train

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'raycnn[onnx]'")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide, tall and small pictures, a class of them gray on disk."""
    top = write_pictures(tmp_path_factory.mktemp("pictures"), ["a|b", "plain"], 12, (40, 21))
    for path in sorted(top.rglob("*.png"))[::3]:
        with Image.open(path) as picture:
            picture.resize((19, 30)).save(path.with_suffix(".jpg"))
    return top


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    transforms = [{"name": "random_resized_crop", "size": 12}, "horizontal_flip"]
    data = {
        "name": "folder",
        "root": str(pictures),
        "size": 16,
        "test": 0.5,
        "transforms": transforms,
    }
    storage = {"path": str(tmp_path_factory.mktemp("runs"))}
    job = job_from_tree(TINY | {"data": data, "storage": storage})
    return train(job.change({"train.epochs": 2, "train.batch_size": 8}))


@pytest.fixture(scope="module")
def network(run: Run) -> Network:
    return predict.load_network(run.weights("best"), torch.device("cpu"))


@pytest.fixture(scope="module")
def onnx_export(run: Run) -> exporting.Export:
    return exporting.export(run, "onnx")


def test_an_onnx_file_is_whole_and_says_what_it_takes(
    onnx_export: exporting.Export, run: Run
) -> None:
    import onnx

    assert {path.name for path in onnx_export.folder.iterdir()} == {
        "model.onnx",
        "export.json",
        "predict.py",
    }
    model = onnx.load(onnx_export.file)
    onnx.checker.check_model(model, full_check=True)
    image = model.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.shape.dim] == ["batch", 3, 16, 16]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == ["a|b", "plain"]
    about = json.loads((onnx_export.folder / "export.json").read_text())
    assert about["preprocessing"]["size"] == [16, 16] and about["preprocessing"]["fit"] == "crop"
    assert about["checked"]["images"] == run.result()["test"]["count"]
    assert str(run.job().storage.path) not in onnx_export.file.read_text(errors="replace")


@pytest.mark.parametrize("size", [1, 2, 7])
def test_onnxruntime_gives_the_runs_logits(
    onnx_export: exporting.Export, run: Run, network: Network, size: int
) -> None:
    stored = open_splits(run.job()).cache.splits["test"]
    images = torch.from_numpy(stored.images[np.arange(size)]).permute(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(onnx_export.file)
    probabilities, logits = session.run(None, {"images": images.contiguous().numpy()})
    assert np.abs(logits - network(images)[1].numpy()).max() < 1e-3
    assert np.allclose(probabilities.sum(1), 1)


def test_pictures_are_predicted_as_by_the_run(
    onnx_export: exporting.Export, run: Run, pictures: Path, call: Call
) -> None:
    answers = []
    for what in (run.folder, onnx_export.file, onnx_export.folder):
        code, out, err = call("predict", what, pictures, "--json", "--top", 2)
        assert code == 0, err
        answers.append([json.loads(line) for line in out.splitlines()])
    assert len(answers[0]) == 32
    for answer in answers[1:]:
        for own, other in zip(answers[0], answer, strict=True):
            assert own["path"] == other["path"]
            assert own["classes"] == pytest.approx(other["classes"], abs=1e-3)


def test_the_loader_beside_it_needs_no_raycnn(
    onnx_export: exporting.Export, network: Network, pictures: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(onnx_export.folder, tmp_path / "moved")
    files = find_pictures([pictures])
    command = [sys.executable, moved / "predict.py", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "raycnn" not in (moved / "predict.py").read_text()
    for line, own in zip(
        done.stdout.splitlines(), network.predict([str(f) for f in files]), strict=True
    ):
        _, label, share = line.rsplit(maxsplit=2)
        assert label == own.label
        assert float(share[:-1]) == pytest.approx(100 * own.probability, abs=0.1)


def test_the_loader_names_a_file_that_is_no_picture(
    onnx_export: exporting.Export, tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no picture")
    command = [sys.executable, onnx_export.folder / "predict.py", tmp_path / "torn.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"{tmp_path}/torn.png cannot be read: ")
    assert "Traceback" not in done.stderr


def test_the_loader_scales_pictures_of_more_than_8_bits_as_the_run_does(
    onnx_export: exporting.Export, network: Network, tmp_path: Path
) -> None:
    moved = shutil.copytree(onnx_export.folder, tmp_path / "moved")
    levels = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    command = [sys.executable, moved / "predict.py", tmp_path / "deep.png"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "not trained on pictures with such values" in refused.stderr

    for white in (4095, 5000):  # the range of 12 bits, and one of no number of bits
        about = json.loads((onnx_export.folder / "export.json").read_text())
        about["preprocessing"]["max_value"] = white
        (moved / "export.json").write_text(json.dumps(about))
        deep = replace(network, image_format=replace(network.image_format, max_value=white))
        own = deep.predict(str(tmp_path / "deep.png"))[0]
        done = subprocess.run(command, capture_output=True, text=True)
        _, label, share = done.stdout.rsplit(maxsplit=2)
        assert label == own.label
        assert float(share[:-1]) == pytest.approx(100 * own.probability, abs=0.02)


def test_torch_export_is_loaded_by_torch_alone(run: Run, network: Network, pictures: Path) -> None:
    made = exporting.export(run, "torch")
    module = torch.export.load(made.file).module()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.allclose(module(images)[1], network(images)[1], atol=1e-4)
    own, other = (n.predict(str(pictures)) for n in (network, open_exported(made.folder)))
    assert [p.label for p in own] == [p.label for p in other]


def test_safetensors_stand_in_the_layout_of_hugging_face(
    run: Run, network: Network, tmp_path: Path
) -> None:
    made = exporting.export(run, "safetensors", folder=tmp_path / "card")
    assert {path.name for path in made.folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md", "export.json",
    }  # fmt: skip
    tensors, own = load_file(made.file), network.module.state_dict()
    assert tensors.keys() == own.keys() and all(torch.equal(tensors[k], own[k]) for k in own)
    card = (made.folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    (tmp_path / "front.yaml").write_text(front)
    about, _ = load_yaml(tmp_path / "front.yaml", "front")
    measured = about["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert measured == pytest.approx(run.result()["test"]["acc1"])
    assert "a\\|b" in body and str(run.job().data.root) not in card
    assert str(run.job().data.root) not in (made.folder / "config.json").read_text()


@pytest.mark.parametrize("name", model_card.TIMM)
def test_timm_knows_the_keys_that_are_said_to_be_its_own(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        own = models.build_model(Model(name=name), Shape(3, 64, 64), 7).state_dict()
        other = timm.create_model(model_card.TIMM[name], num_classes=7).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("mode", ["rgb", "gray"])
def test_timm_loads_what_was_exported(pictures: Path, tmp_path: Path, mode: str) -> None:
    timm = pytest.importorskip("timm")
    data = {"name": "folder", "root": str(pictures), "size": 48, "mode": mode, "test": 0.5}
    job = job_from_tree(TINY | {"data": data, "model": {"name": "resnet18"}})
    run = train(
        job.change({"train.epochs": 1, "train.batch_size": 8, "storage.path": str(tmp_path)})
    )
    made = exporting.export(run, "safetensors")
    model = timm.create_model(f"local-dir:{made.folder}", pretrained=True).eval()
    network = predict.load_network(run.weights("best"), torch.device("cpu"))
    images = torch.rand(2, 3 if mode == "rgb" else 1, 48, 48)
    with torch.inference_mode():
        assert torch.allclose(model(images), network.module(images), atol=1e-4)
    assert model.pretrained_cfg["label_names"] == ["a|b", "plain"]


def test_nothing_is_written_that_does_not_count_as_the_run(run: Run, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(run.folder, tmp_path / "run"))
    result = json.loads((moved.folder / "result.json").read_text())
    result["test"]["acc1"] = (result["test"]["acc1"] + 0.5) % 1
    (moved.folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(JobFailed):
        exporting.export(moved, "safetensors")
    assert not [p for p in (moved.folder / "export").rglob("*") if p.name not in ("onnx", "torch")
                and "safetensors" in p.name]  # fmt: skip


def test_an_export_replaces_an_earlier_one_and_nothing_else(
    run: Run, tmp_path: Path, call: Call
) -> None:
    target = tmp_path / "model"
    exporting.export(run, "safetensors", folder=target)
    (target / "config.json").write_text("old")
    exporting.export(run, "safetensors", folder=target)
    assert json.loads((target / "config.json").read_text())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(SpecError):
        exporting.export(run, "safetensors", folder=tmp_path / "mine")
    code, _, err = call("export", run.folder, "--format", "onxx")
    assert code == 2 and "'onnx'" in err


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.pt2", "model.safetensors"):
        (tmp_path / name).write_bytes(b"\x08\x07no")
        with pytest.raises(DataError):
            open_exported(tmp_path / name)


def test_an_export_has_no_paths_of_the_machine(run: Run) -> None:
    changes = {
        "train.distillation": {"teacher": "/home/me/runs/teacher/1"},
        "data": {"name": "folder", "path": "/home/me/pictures"},
    }
    spec = exporting._without_paths(run.job().change(changes))
    assert "/home/me" not in str(spec.tree())
    assert spec.train.distillation and spec.train.distillation.teacher == "teacher/1"


def test_an_export_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnavailable, match="-o names a folder"):
        exporting.export(run, "safetensors", folder=tmp_path / "file" / "export")
