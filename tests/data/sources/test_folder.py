import os
import unicodedata
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
    assert sum(len(split.labels) for split in splits.cache.splits.values()) == 18
    (said,) = splits.warnings
    assert said.startswith(f"{tmp_path}") and "6 (" in said
    assert "3 hidden" in said and "1 of type .db" in said and "1 of type .txt" in said


def test_pictures_are_brought_to_the_size_and_mode_asked_for(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"], 3, (30, 20))
    write_pictures(tmp_path, ["b"], 3, (10, 40))
    (tmp_path / "b" / "gray.png").write_bytes(png((9, 9), mode="L"))
    assert source("folder", tmp_path, size=8, mode="rgb").shape == (3, 8, 8)
    made = source("folder", tmp_path, size=[8, 12], mode="gray", fit="stretch")
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
    assert f"there is no {tmp_path}/absent" in refusal("folder", tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "is a file" in refusal("folder", tmp_path, path="file")
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
    assert f"{odd} is 7x4, not 6x4" in said and "`data.size`" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [("path", "../x"), ("size", 0), ("size", [1]), ("test", 0), ("fit", "pad")],
)
def test_wrong_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"data.{option}"):
        source_of(Data(name="folder", root="x", **{option: value}))


def test_pictures_at_any_depth_below_a_class_are_its_own(tmp_path: Path) -> None:
    write_pictures(tmp_path / "cat", ["more", "more/still"], 30)
    write_pictures(tmp_path, ["cat"], 3)
    write_pictures(tmp_path / "n01443537", ["images"], 5)
    made = source("folder", tmp_path, test=0.2)
    assert made.classes == ("cat", "n01443537")
    counts = [np.bincount(split.labels) for split in made.read().values()]
    assert sum(counts).tolist() == [63, 5]
    assert b"cat/more/still/7.png" in {n for s in made.read().values() for n in s.names.tolist()}


def test_a_link_to_a_folder_above_is_not_followed_and_one_to_nothing_is_counted(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "data", ["a", "b"], 4)
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    write_pictures(tmp_path / "elsewhere", ["more"], 3)
    (tmp_path / "data" / "b" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    splits = source("folder", tmp_path / "data").read()
    assert sum(np.bincount(s.labels, minlength=2) for s in splits.values()).tolist() == [4, 7]
    (said,) = splits["train"].warnings
    assert "1 links to a folder above" in said and "1 links to nothing" in said


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("trn", "dev", "eval"),
        ("seg_train", "seg_valid", "seg_test"),
        ("train-images", "val-images", "test-images"),
    ],
)
def test_splits_are_found_by_any_of_their_usual_names(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for count, name in enumerate(names, 2):
        write_pictures(tmp_path / name, ["x", "y"], count)
    made = source("folder", tmp_path)
    assert made.classes == ("x", "y")
    sizes = {name: len(split.images) for name, split in made.read().items()}
    assert sizes == {"train": 4, "val": 6, "test": 8}


def test_what_lies_beside_the_splits_is_counted(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_pictures(tmp_path / name, ["x", "y"], 2)
    write_pictures(tmp_path, ["extra"], 7)
    (tmp_path / "labels.csv").touch()
    said = " ".join(source("folder", tmp_path).read()["train"].warnings)
    assert f"{tmp_path}/extra" in said and "7 pictures" in said and "ignored: 1" in said


def test_a_test_folder_without_classes_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", ["x", "y"], 5)
    write_pictures(tmp_path, ["test"], 7)
    splits = source("folder", tmp_path, test=0.2).read()
    assert len(splits["train"].labels) == 8 and len(splits["test"].labels) == 2
    assert any("/test" in said and "7 pictures" in said for said in splits["train"].warnings)


def test_folders_of_splits_that_hold_pictures_are_no_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["train", "test"], 4)
    assert str(tmp_path) in refusal("folder", tmp_path)


@pytest.mark.parametrize("outer", ["all/all", "archive/flowers"])
def test_a_lone_folder_around_the_classes_is_gone_into(tmp_path: Path, outer: str) -> None:
    write_pictures(tmp_path / outer, ["a", "b"], 3)
    made = source("folder", tmp_path)
    assert made.classes == ("a", "b") and made.read()["train"].warnings
    write_pictures(tmp_path / "two" / "train" / "train", ["a", "b"], 3)
    assert source("folder", tmp_path / "two").classes == ("a", "b")


def test_what_systems_leave_behind_is_no_class_and_no_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b", "__MACOSX", "@eaDir", ".ipynb_checkpoints"], 3)
    write_pictures(tmp_path / "a", ["__MACOSX"], 3)
    (tmp_path / "a" / "._0.png").write_bytes(b"\0")
    splits = source("folder", tmp_path, test=0.34).read()
    assert sum(len(split.labels) for split in splits.values()) == 6
    assert any("5 hidden" in said for said in splits["train"].warnings)


def test_classes_of_one_picture_keep_it_in_train_and_that_is_said(
    tmp_path: Path, job: MakeJob
) -> None:
    write_pictures(tmp_path, [f"class{k:02}" for k in range(40)], 1)
    write_pictures(tmp_path, ["class00", "class01"], 30)
    splits = open_splits(job(data={"name": "folder", "root": str(tmp_path), "val": 0.2}))
    assert np.bincount(splits.labels("train"), minlength=40).min() == 1
    assert len(splits.labels("test")) and len(splits.labels("val"))
    assert any(said.startswith("38 classes have a single image") for said in splits.warnings)


def test_a_split_may_lack_classes_and_that_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", ["a", "b", "c"], 3)
    write_pictures(tmp_path / "test", ["a", "c"], 2)
    made = source("folder", tmp_path)
    test = made.read()["test"]
    assert made.classes == ("a", "b", "c") and test.labels.tolist() == [0, 0, 2, 2]
    assert any("1 classes: b" in said for said in test.warnings)


def test_class_names_of_two_unicode_forms_are_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", [unicodedata.normalize("NFC", "café"), "b"], 3)
    write_pictures(tmp_path / "test", [unicodedata.normalize("NFD", "café"), "b"], 2)
    made = source("folder", tmp_path)
    assert made.classes == ("b", "caf\u00e9")
    assert made.read()["test"].labels.tolist() == [0, 0, 1, 1]


def test_gray_among_color_pictures_is_converted_and_counted(tmp_path: Path, job: MakeJob) -> None:
    write_pictures(tmp_path, ["a", "b"], 10)
    for name in ("0", "1"):
        (tmp_path / "a" / f"{name}.png").write_bytes(png((6, 4), 200, mode="L"))
    splits = open_splits(job(data={"name": "folder", "root": str(tmp_path)}))
    assert splits.cache.shape == (3, 4, 6)
    assert any(said.startswith("2 gray pictures") for said in splits.warnings)


def test_a_class_folder_without_pictures_names_what_it_holds(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b", "c"], 2)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_suffix(".heic"))
    said = refusal("folder", tmp_path)
    assert f"{tmp_path}/b" in said and "2 of type .heic" in said
