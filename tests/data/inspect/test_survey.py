"""`raycnn data`: what it counts, and which images it says stand twice."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.images import write_pictures
from tests.support.processes import Call


@pytest.fixture
def call(call: Call) -> Call:
    return partial(call, "data")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("test", 3)):
        write_pictures(tmp_path / "pictures" / split, ["cat", "dog"], count)
    return tmp_path / "pictures"


def surveyed(call: Call, *words: object) -> dict[str, Any]:
    ended, out, err = call(*words, "--json")
    assert ended == 0, err
    return json.loads(out)


def names(twins: dict[str, Any]) -> set[tuple[str, str]]:
    return {(place["split"], place["name"]) for place in twins["occurrences"]}


def test_images_are_counted_and_measured(call: Call, pictures: Path) -> None:
    found = surveyed(call, "folder", "--root", pictures)
    assert found["classes"] == ["cat", "dog"] and found["shape"] == [3, 4, 6]
    assert found["counts"] == {"train": [5, 5], "test": [3, 3]}
    files = sorted((pictures / "train").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    assert found["mean"]["train"] == pytest.approx(pixels.mean((0, 1, 2)))
    assert found["std"]["train"] == pytest.approx(pixels.std((0, 1, 2)))
    assert found["duplicates"] == found["near_duplicates"] == found["unreadable"] == []


def test_a_folder_is_inspected_as_it_would_be_trained_on(call: Call, pictures: Path) -> None:
    found = surveyed(call, pictures)
    assert list(found["counts"]) == ["train", "val", "test"]
    assert found["counts"]["test"] == [3, 3] and sum(found["counts"]["train"]) == 8
    ended, _, err = call(pictures, "--root", pictures)
    assert ended == 2 and "--root: " in err and "is a folder of images itself" in err
    of_source = surveyed(call, "folder", f"data.path={pictures.name}", "--root", pictures.parent)
    assert of_source["counts"] == {"train": [5, 5], "test": [3, 3]}


def test_the_same_image_in_two_classes_and_in_two_splits_is_named(
    call: Call, pictures: Path
) -> None:
    for place in ("train/dog/copy.png", "test/cat/copy.png"):
        shutil.copy(pictures / "train/cat/0.png", pictures / place)
    found = surveyed(call, "folder", "--root", pictures)
    assert found["near_duplicates"] == [] and len(found["duplicates"]) == 1
    assert names(found["duplicates"][0]) == {
        ("train", "cat/0.png"), ("train", "dog/copy.png"), ("test", "cat/copy.png"),
    }  # fmt: skip
    _, out, _ = call("folder", f"root={pictures}")
    assert "1 (1 across classes, 1 across splits)" in out
    assert "train cat/0.png (cat) = train dog/copy.png (dog) = test cat/copy.png (cat)" in out


def test_an_image_saved_anew_is_named_with_its_difference(call: Call, pictures: Path) -> None:
    # Not random, as the others are: noise of so few pixels may change by more than the threshold.
    original = Image.fromarray(np.linspace(0, 255, 6 * 4 * 3).reshape(4, 6, 3).astype(np.uint8))
    original.save(pictures / "train/cat/1.png")
    original.save(pictures / "test/cat/anew.jpg", quality=95, subsampling=0)
    (twins,) = surveyed(call, "folder", "--root", pictures)["near_duplicates"]
    assert names(twins) == {("train", "cat/1.png"), ("test", "cat/anew.jpg")}
    assert 0 < twins["difference"] < 0.08
    assert f"{twins['difference']:.1%}  train cat/1.png" in call("folder", f"root={pictures}")[1]


def test_images_that_cannot_be_read_are_named_and_not_fatal(call: Call, pictures: Path) -> None:
    (pictures / "train" / "cat" / "page.jpg").write_text("<html>")
    ended, out, _ = call("folder", "--root", pictures)
    assert ended == 0 and "images that cannot be read: 1\n" in out and "page.jpg" in out
    assert ["cat", "5", "3"] in [line.split() for line in out.splitlines()]


def test_a_job_is_surveyed_in_the_splits_it_trains_on(
    call: Call, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(pictures / "train/cat/0.png", pictures / "train/cat/1.png")
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\ndata: {{name: folder, root: {pictures}, val: 0.4}}\nmodel: lenet\n"
        "optimizer: {name: sgd, lr: 0.1}\ntrain: {epochs: 1, batch_size: 2}\n"
    )
    found = surveyed(call, "mine.yaml", "data.val=0.2")
    assert found["counts"] == {"test": [3, 3], "val": [1, 1], "train": [4, 4]}
    assert len(found["duplicates"]) == 1
    elsewhere = shutil.copytree(pictures, tmp_path / "elsewhere")
    (elsewhere / "test/cat/0.png").unlink()
    assert surveyed(call, "mine.yaml", "--root", elsewhere)["counts"]["test"] == [2, 3]


def test_the_sheet_has_a_row_for_each_class(call: Call, tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 220)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            image = np.full((8, 8), level, np.uint8)
            image[0, 0] = i
            Image.fromarray(image).save(tmp_path / "data" / name / f"{i}.png")
    ended, _, _ = call("folder", "--root", tmp_path / "data", "--sheet", "sheet.png")
    assert ended == 0
    sheet = np.asarray(Image.open("sheet.png").convert("L"))
    dark, light = sheet[sheet.shape[0] // 4], sheet[3 * sheet.shape[0] // 4]
    assert (dark == 40).sum() == (light == 220).sum() == 12 * 48
    ended, _, err = call("folder", "--root", tmp_path / "data", "--sheet", "nowhere/sheet.png")
    assert ended == 2 and "cannot write the sheet" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["foldr"], 2, "data.name: unknown dataset 'foldr'; did you mean 'folder'?"),
        (["folder", "sise=8"], 2, "data.sise: unknown folder option 'sise'; did you mean 'size'?"),
        (["folder", "download=maybe"], 2, "data.download: must be a valid boolean, not 'maybe'"),
        (["mnist", "--root", "nowhere"], 4, "mnist is not in"),
        (["folder", "data.path=nowhere"], 4, "cannot read the data: there is no "),
        (["mnist", "--root", "s3://bucket/data"], 2, "--root: is a URI"),
        (["digits", "size"], 2, "'size' is not a change"),
        (["digits", "fold=[0, 2]"], 2, "fold: applies only to a job"),
        (["nowhere.yaml"], 2, "cannot read nowhere.yaml"),
    ],
)
def test_data_that_is_not_there_is_refused(
    call: Call, words: list[str], code: int, said: str
) -> None:
    ended, out, err = call(*words)
    assert ended == code and said in err and not out


def test_thirteen_test_images_of_signs_stand_in_train(call: Call, real_data: Path) -> None:
    found = surveyed(call, "hdf5", "path=signs", "--root", real_data)
    across = [
        twins
        for twins in found["near_duplicates"]
        if len({p["split"] for p in twins["occurrences"]}) > 1
    ]
    of_test = {name for twins in across for split, name in names(twins) if split == "test"}
    assert len(found["near_duplicates"]) == len(across) == len(of_test) == 13
    assert all(
        len({place["label"] for place in twins["occurrences"]}) == 1
        for twins in found["near_duplicates"]
    )
    assert all(
        len({place["split"] for place in twins["occurrences"]}) == 1
        for twins in found["duplicates"]
    )


def test_flowers_that_stand_twice_are_found(call: Call, real_data: Path, tmp_path: Path) -> None:
    """Of each class some, among them the known twins, and the same photographs saved anew."""
    same = {
        frozenset({"roses/15922772266_1167a06620.jpg", "tulips/15922772266_1167a06620.jpg"}),
        frozenset(
            {"sunflowers/14889392928_9742aed45b_m.jpg", "sunflowers/15066430311_fb57fa92b0_m.jpg"}
        ),
        frozenset(
            {"sunflowers/15069459615_7e0fd61914_n.jpg", "sunflowers/15072973261_73e2912ef2_n.jpg"}
        ),
    }
    near = {
        frozenset({"roses/1775233884_12ff5a124f.jpg", "roses/2093263381_afd51358a3.jpg"}),
        frozenset({"daisy/10993710036_2033222c91.jpg", "daisy/10993818044_4c19b86c82.jpg"}),
        frozenset({"daisy/10466290366_cc72e33532.jpg", "daisy/10994032453_ac7f8d9e2e.jpg"}),
    }
    flowers = real_data / "flower_photos"
    some = [p for c in flowers.iterdir() if c.is_dir() for p in sorted(c.glob("*.jpg"))[:60]]
    known = [flowers / name for twins in same | near for name in twins]
    for path in {*some, *known}:
        place = tmp_path / "flowers" / path.relative_to(flowers)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path, place)
    found = surveyed(call, "folder", "size=48", "--root", tmp_path / "flowers")
    assert {frozenset(p["name"] for p in t["occurrences"]) for t in found["duplicates"]} == same
    assert {
        frozenset(p["name"] for p in t["occurrences"]) for t in found["near_duplicates"]
    } == near
