import shutil
from pathlib import Path

import pytest

from raycnn.data.splits import open_splits
from tests.support.images import MakeJob, write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        write_pictures(tmp_path / "data" / split, ["a", "b"], 5)
    return tmp_path / "data"


def warnings(job: MakeJob, root: Path) -> list[str]:
    return open_splits(job(data={"name": "folder", "root": str(root), "val": 0})).warnings


def test_data_without_duplicates_is_not_warned_of(job: MakeJob, pictures: Path) -> None:
    shutil.copy(pictures / "train" / "a" / "0.png", pictures / "train" / "a" / "more.png")
    assert warnings(job, pictures) == []


def test_an_image_in_two_splits_is_named(job: MakeJob, pictures: Path) -> None:
    shutil.copy(pictures / "train" / "a" / "0.png", pictures / "test" / "a" / "0.png")
    (said,) = warnings(job, pictures)
    assert said.startswith("1 image") and said.endswith("test a/0.png and train a/0.png")


def test_images_of_two_classes_are_counted_and_the_first_named(
    job: MakeJob, pictures: Path
) -> None:
    for i in range(5):
        shutil.copy(pictures / "train" / "a" / f"{i}.png", pictures / "train" / "b" / f"{i}.png")
    (said,) = warnings(job, pictures)
    assert said.startswith("5 images") and "train a/" in said
    assert said.count(" and ") == 3 and said.endswith("; ...")


def test_the_real_signs_have_duplicates(real_data: Path, job: MakeJob) -> None:
    data = {"name": "hdf5", "root": str(real_data), "path": "signs"}
    (said,) = open_splits(job(data=data)).warnings
    assert "across splits: val row" in said
