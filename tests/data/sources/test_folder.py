import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycnn.config.schema import Data
from raycnn.data.splits import open_splits, source_of
from raycnn.errors import SpecError
from tests.support.images import MakeJob, pixels, png, refusal, source, write_pictures


def test_a_folder_per_class_is_split_by_class_and_always_alike(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["b", "a"], 10)
    made = source("folder", tmp_path, test=0.3)
    splits = made.read()
    assert made.shape == (3, 4, 6) and made.classes == ("a", "b")
    assert np.bincount(splits["train"].labels).tolist() == [7, 7]
    assert np.bincount(splits["test"].labels).tolist() == [3, 3]
    again = source("folder", tmp_path, test=0.3).read()
    assert (splits["test"].names == again["test"].names).all()
    both = {*splits["train"].names.tolist(), *splits["test"].names.tolist()}
    assert len(both) == 20
    for split in splits.values():
        for name, image in zip(split.names.tolist(), pixels(split), strict=True):
            assert (np.array(Image.open(tmp_path / os.fsdecode(name))) == image).all()


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "test")])
def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    for count, name in enumerate(names, 2):
        write_pictures(tmp_path / name, ["x", "y"], count)
    write_pictures(tmp_path, ["not a split"], 1)
    splits = source("folder", tmp_path).read()
    sizes = {name: len(split.images) for name, split in splits.items()}
    assert sizes == {"train": 4, "val": 6, "test": 8}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["car", "train"], 4)
    assert source("folder", tmp_path).classes == ("car", "train")


def test_names_may_be_of_any_script_and_what_is_no_picture_is_counted(
    tmp_path: Path, job: MakeJob
) -> None:
    classes = ["two words", "鲜花", "🌻"]
    write_pictures(tmp_path, classes, 5)
    for other in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png"):
        (tmp_path / "鲜花" / other).write_bytes(png())
    write_pictures(tmp_path / "🌻", ["inside"], 3)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README").touch()
    splits = open_splits(job(data={"name": "folder", "root": str(tmp_path)}))
    assert splits.classes == tuple(classes)
    assert sum(len(split.labels) for split in splits.store.splits.values()) == 15
    assert splits.warnings == [f"{tmp_path}: hidden files, other files and folders, ignored: 7"]


def test_pictures_are_brought_to_the_size_and_mode_asked_for(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"], 3, (30, 20))
    write_pictures(tmp_path, ["b"], 3, (10, 40))
    (tmp_path / "b" / "grey.png").write_bytes(png((9, 9), mode="L"))
    assert source("folder", tmp_path, size=8, mode="rgb").shape == (3, 8, 8)
    made = source("folder", tmp_path, size=[8, 12], mode="grey", fit="stretch")
    assert pixels(made.read()["train"]).shape[1:] == (8, 12, 1)


def test_the_first_picture_that_can_be_read_tells_the_shape(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"], 3)
    (tmp_path / "a" / "0.png").write_text("<html>")
    assert source("folder", tmp_path).shape == (3, 4, 6)


def test_real_flowers_are_seen_whole_and_upright(tmp_path: Path, real_data: Path) -> None:
    for name in ("daisy", "roses"):
        (tmp_path / name).mkdir()
        for path in sorted((real_data / "flower_photos" / name).iterdir())[:8]:
            (tmp_path / name / path.name).symlink_to(path)
    train = source("folder", tmp_path, size=48, mode="rgb").read()["train"]
    for name, image in zip(train.names.tolist()[:4], pixels(train), strict=False):
        whole = Image.open(tmp_path / os.fsdecode(name)).resize((4, 4), Image.Resampling.BOX)
        small = Image.fromarray(image).resize((4, 4), Image.Resampling.BOX)
        middle = np.abs(np.array(whole, int) - np.array(small, int))[1:3, 1:3]
        assert middle.mean() < 40


def test_all_real_flowers_are_listed(real_data: Path) -> None:
    made = source("folder", real_data, path="flower_photos", size=32, mode="rgb")
    splits = made.read()
    assert made.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert len(made.files()) == len(splits["train"].images) + len(splits["test"].images) == 3670


def test_faulty_folders_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal("folder", tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal("folder", tmp_path, path="file")
    assert "no class folders" in refusal("folder", tmp_path)
    write_pictures(tmp_path / "x", ["a"], 2)
    assert "fewer than two classes (a)" in refusal("folder", tmp_path / "x")
    (tmp_path / "x" / "b").mkdir()
    assert f"{tmp_path}/x/b: no pictures" in refusal("folder", tmp_path / "x")


def test_splits_of_other_classes_are_refused_with_both_lists(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", ["cat", "dog"], 2)
    write_pictures(tmp_path / "test", ["cat", "dgo"], 2)
    said = refusal("folder", tmp_path)
    assert "train has cat, dog" in said and "test has cat, dgo" in said


def test_two_folders_of_one_split_and_none_of_train_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "one" / "test", ["a", "b"], 1)
    assert "no train folder" in refusal("folder", tmp_path / "one")
    for name in ("train", "training"):
        write_pictures(tmp_path / "two" / name, ["a", "b"], 1)
    assert "two train splits: train, training" in refusal("folder", tmp_path / "two")


def test_pictures_that_differ_are_named_with_the_option_that_helps(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"], 3)
    odd = tmp_path / "b" / "1.png"
    odd.write_bytes(png((7, 4)))
    said = refusal("folder", tmp_path)
    assert f"{odd} is 7x4, not 6x4: `data.size`" in said
    odd.write_bytes(png((6, 4), mode="L"))
    assert f"{odd} is grey, not colour: `data.size` and `data.mode`" in refusal("folder", tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [("path", "../x"), ("path", "s3://x"), ("size", 0), ("size", [1]), ("test", 0), ("fit", "pad")],
)
def test_wrong_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"data.{option}"):
        source_of(Data(name="folder", root="x", **{option: value}))
