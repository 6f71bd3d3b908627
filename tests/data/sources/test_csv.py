"""Pictures whose labels are in CSV files."""

from pathlib import Path

import numpy as np
import pytest

from raycnn.config.schema import Data
from raycnn.data.sources.base import files_of
from raycnn.data.splits import source_of
from raycnn.errors import DataError
from tests.support.images import pixels, png, refusal, source
from tests.support.multi_label import CLASSES, write_csv


def table(root: Path, text: str, name: str = "train.csv", pictures: str = "a b c d") -> Path:
    for number, picture in enumerate(pictures.split()):
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / f"{picture}.png").write_bytes(png((5, 4), number))
    (root / name).write_text(text)
    return root


def marks(labels: list[list[str]], classes: tuple[str, ...] = CLASSES) -> list[list[int]]:
    return [[int(name in own) for name in classes] for own in labels]


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_an_image_has_any_number_of_labels(tmp_path: Path, separator: str) -> None:
    labels = write_csv(tmp_path, 20, separator)
    (tmp_path / "test.csv").write_text("image,labels\n003.png,red\n")
    made = source("csv", tmp_path)
    splits = made.read()
    assert made.classes == CLASSES and splits["train"].labels.dtype == np.uint8
    assert splits["train"].labels.tolist() == marks(labels) and [] in labels
    assert splits["test"].labels.tolist() == [[0, 0, 1]]
    assert (pixels(splits["test"])[0] == pixels(splits["train"])[3]).all()
    assert splits["train"].names is not None and splits["train"].names[3] == b"pictures/003.png"


def test_a_column_of_0_and_1_for_each_class_gives_the_same(tmp_path: Path) -> None:
    rows = "name;cat;dog\na;1;0\nimages/b.png;0;0\nc.png;1.0;True\nd;0;1\n"
    splits = source("csv", table(tmp_path, rows), test=0.25).read()
    both = {str(n): row for s in splits.values() for n, row in zip(s.names, s.labels.tolist(), strict=True)}  # type: ignore[arg-type]  # fmt: skip
    assert sorted(both.values()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert both["b'images/b.png'"] == [0, 0] and both["b'images/c.png'"] == [1, 1]


def test_numbers_are_class_indices(tmp_path: Path) -> None:
    made = source("csv", table(tmp_path, "id,tags\na,0 3\nb,1\nc,2 1\nd,\n"))
    assert made.classes == ("0", "1", "2", "3")
    assert made.read()["train"].labels.sum() >= 4


def test_one_class_each_is_accuracy_as_of_folders(tmp_path: Path) -> None:
    made = source("csv", table(tmp_path, "id,label\na,x y\nb,z\nc,x y\nd,z\n"), multi_label=False)
    labels = np.concatenate([split.labels for split in made.read().values()])
    assert made.classes == ("x y", "z") and sorted(labels.tolist()) == [0, 0, 1, 1]
    many = source("csv", table(tmp_path, "id,label\na,x\nb,z\nc,x\nd,z\n"))
    assert "data.multi_label: false" in many.read()["train"].warnings[0]


def test_a_test_file_without_labels_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("id\nsecret\n")
    made = source("csv", table(tmp_path, "id,label\na,x\nb,x|z\nc,x\nd,z\n"))
    splits = made.read()
    assert len(splits["train"].labels) + len(splits["test"].labels) == 4
    assert "have no labels" in splits["train"].warnings[0]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("id,label\na,x\nb,x z\nzz,z\n", {}, "row 2: 'zz' is not a picture"),
        ("id,label\na,x\nb,x|z\n", {"label": "lable"}, "did you mean 'label'"),
        ("id,cat,dog\na,1,0\nb,2,1\n", {}, "row 1 has '2' in column 'cat'"),
        ("id,cat,dog\na,1,0\nb,1,1\n", {"multi_label": False}, "data.multi_label: true"),
        ("id,label\na,x\nb\n", {}, "row 1 has 1 cells, not 2"),
        ("id,id\na,x\n", {}, "columns ['id', 'id']"),
        ("id\na\n", {}, "has only one column, 'id'"),
        ("id,label\na,\nb,\n", {}, "no image has a label"),
        ("id,label\na,x\nb,x\n", {}, "fewer than two classes"),
        ("id,label\na,x\nb,z\nc,\n", {"multi_label": False}, "row 2 has label None"),
        ("id,label\n", {}, "has no rows"),
        ('id,label\na,"x\n', {}, "cannot read"),
        ("id,label\na,x\nb,z\n", {"train_labels": "trian.csv"}, "did you mean 'train.csv'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, options: dict[str, object], told: str
) -> None:
    assert told in refusal("csv", table(tmp_path, text), **options)


def test_a_label_that_train_lacks_is_refused(tmp_path: Path) -> None:
    table(tmp_path, "id,label\na,x w\n", "val.csv")
    said = refusal("csv", table(tmp_path, "id,label\na,x\nb,x z\nc,x\nd,z\n"))
    assert "val.csv: row 0 has label 'w', which is not a class (x, z)" in said


def test_a_name_of_two_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(png())
    said = refusal("csv", table(tmp_path, "id,label\na,x\nb,x z\n"))
    assert "row 0: 'a' is ambiguous (images/a.png, other/a.png)" in said


@pytest.mark.parametrize("name", ["csv", "folder"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("image,label\n")
    source = source_of(Data(name=name, root=str(file)))
    with pytest.raises(DataError, match="labels.csv"):
        files_of(source)
