"""`raycnn check` reads what training reads: labels, a sample of the pictures, weights."""

from pathlib import Path

import pytest
import torch

from raycnn import models
from raycnn.config.schema import Model
from raycnn.shape import Shape
from tests.support.images import png, write_parquet, write_pictures
from tests.support.processes import Call


def spec(tmp_path: Path, data: str, model: str = "{name: lenet, activation: relu}") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\ndata: {{{data}}}\nmodel: {model}\noptimizer: {{name: sgd, lr: 0.1}}\n"
        "train: {epochs: 1, batch_size: 4}\n"
    )
    return path


def test_pictures_of_many_sizes_are_refused_though_the_first_are_alike(
    call: Call, tmp_path: Path
) -> None:
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 40, (16, 16))
    (top / "b" / "7.png").write_bytes(png((20, 18)))
    code, _, err = call("check", spec(tmp_path, f"name: folder, root: {top}"))
    assert code == 4 and "b/7.png" in err and "`data.size`" in err


def test_labels_of_parquet_are_read(call: Call, tmp_path: Path) -> None:
    cells = [png((16, 16), color) for color in range(6)]
    write_parquet(tmp_path / "train-0.parquet", cells, ["cat", "dog", "eel"] * 2)
    job = spec(tmp_path, f"name: parquet, root: {tmp_path}")
    code, out, err = call("check", job)
    assert code == 0 and "3 classes" in out, err
    write_parquet(tmp_path / "test-0.parquet", cells, ["cat", "dog", "cow"] * 2)
    code, _, err = call("check", job)
    assert code == 4 and "test-0.parquet: row 2" in err


def test_what_is_ignored_and_lone_pictures_are_told(call: Call, tmp_path: Path) -> None:
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 9, (16, 16))
    write_pictures(top, ["lone"], 1, (16, 16))
    (top / "a" / "notes.txt").touch()
    code, out, err = call("check", spec(tmp_path, f"name: folder, root: {top}"))
    assert code == 0 and "1 of type .txt" in out and "lone" in out, err


@pytest.mark.parametrize("classes", [10, 3])
def test_weights_are_read(call: Call, tmp_path: Path, classes: int) -> None:
    network = models.build_model(Model(name="lenet", activation="relu"), Shape(1, 16, 16), classes)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    data = "name: digits, transforms: [{name: resize, size: 16}]"
    model = f"{{name: lenet, activation: relu, weights: {tmp_path / 'w.pt'}}}"
    assert call("check", spec(tmp_path, data, model))[0] == 0
    (tmp_path / "w.pt").write_bytes(b"PK\x05\x06")
    code, _, err = call("check", spec(tmp_path, data, model))
    assert code == 4 and "w.pt" in err
    torch.save({"other": torch.zeros(3)}, tmp_path / "w.pt")
    code, _, err = call("check", spec(tmp_path, data, model))
    assert code == 2 and "model.weights" in err


def test_a_folder_of_pictures_is_checked_without_a_spec(call: Call, tmp_path: Path) -> None:
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 9, (16, 16))
    code, out, err = call("check", top, "train.epochs=2")
    assert code == 0 and "2 classes" in out and f"raycnn train {top}" in out, err
    code, _, err = call("check", top, "train.epoch=2")
    assert code == 2 and "epochs" in err
    (tmp_path / "empty").mkdir()
    assert call("check", tmp_path / "empty")[0] == 4
