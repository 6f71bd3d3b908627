import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycnn.config.schema import Data
from raycnn.data.splits import source_of
from raycnn.errors import SpecError
from tests.support.images import pixels, png, refusal, source, write_parquet

SIX = [png((5, 4), colour) for colour in range(6)]


def reds(split: Any) -> list[int]:
    """What tells the images above apart."""
    return pixels(split)[:, 0, 0, 0].tolist()


def test_many_files_and_row_groups_are_read_in_their_order(tmp_path: Path) -> None:
    for part in range(2):
        write_parquet(tmp_path / f"train-{part}.parquet", SIX[part * 3 :][:3], [0, 1, 0], group=2)
    write_parquet(tmp_path / "test-0.parquet", SIX, [0, 1] * 3)
    write_parquet(tmp_path / "validation-0.parquet", SIX[:2], [1, 0])
    made = source("parquet", tmp_path)
    splits = made.read()
    assert made.shape == (3, 4, 5) and made.classes == ("0", "1")
    assert reds(splits["train"]) == list(range(6))
    assert splits["train"].labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert reds(splits["val"]) == [0, 1] and reds(splits["test"]) == list(range(6))
    assert splits["train"].images[np.array([5, 0, 5])][:, 0, 0, 0].tolist() == [5, 0, 5]
    sent = pickle.loads(pickle.dumps(splits["train"].images))
    assert sent[np.array([4])][0, 0, 0, 0] == 4


def test_a_uri_is_read_like_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d" / "train-0.parquet", SIX, [0, 1] * 3)
    local = source("parquet", tmp_path, path="d")
    remote = source("parquet", Path("nowhere"), path=f"file://{tmp_path}/d")
    assert remote.files() == [f"file://{tmp_path}/d/train-0.parquet"]
    for one, other in zip(local.read().values(), remote.read().values(), strict=True):
        assert reds(one) == reds(other) and (one.labels == other.labels).all()


def test_columns_are_found_by_their_type_and_classes_in_the_metadata(tmp_path: Path) -> None:
    columns = {"image": "photo", "label": "kind", "names": ["cat", "dog", "eel"]}
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3, **columns)
    made = source("parquet", tmp_path, test=0.34)
    assert made.classes == ("cat", "dog", "eel")
    assert len(made.read()["test"].labels) == 2


def test_files_can_be_named_by_globs(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "a-1.parquet", SIX, [0, 1] * 3)
    write_parquet(tmp_path / "data" / "b-1.parquet", SIX[:2], [0, 1])
    made = source(
        "parquet", tmp_path, train_files="data/a-*.parquet", test_files="data/b-1.parquet"
    )
    assert reds(made.read()["test"]) == [0, 1]


def test_pictures_are_brought_to_the_size_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [*SIX, png((40, 9), 7, "L")], [0, 1, 0, 1, 0, 1, 1])
    assert "row 6 is grey, not colour" in refusal("parquet", tmp_path)
    assert "row 6 is 40x9, not 5x4: `data.size`" in refusal("parquet", tmp_path, mode="grey")
    made = source("parquet", tmp_path, size=[6, 7], mode="rgb")
    assert pixels(made.read()["train"]).shape[1:] == (6, 7, 3)


@pytest.mark.parametrize(
    ("cells", "labels", "said"),
    [
        ([*SIX[:5], b"<html>"], [0, 1] * 3, "train-0.parquet: row 5 holds no image"),
        ([*SIX[:5], None], [0, 1] * 3, "train-0.parquet: row 5 holds no image"),
        (SIX, [0, 1, 0, 1, 0, None], "train-0.parquet: row 5 has label None"),
        (SIX, [0, 1, 0, 1, 0, -1], "train-0.parquet: row 5 has label -1"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, cells: Any, labels: Any, said: str) -> None:
    write_parquet(tmp_path / "train-0.parquet", cells, labels, group=2)
    assert said in refusal("parquet", tmp_path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["cat"] * 6, "row 0 has label 'cat'"), ([0.5] * 6, "row 0 has label 0.5")],
)
def test_labels_that_are_no_numbers_are_named(tmp_path: Path, labels: Any, said: str) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, labels)
    assert said in refusal("parquet", tmp_path)


def test_a_test_label_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    write_parquet(tmp_path / "test-0.parquet", SIX[:2], [0, 2])
    assert "test-0.parquet: row 1 has label 2" in refusal("parquet", tmp_path)


def test_a_label_too_large_for_a_class_number_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 10**12] * 3)
    assert "label 1000000000000, where at most" in refusal("parquet", tmp_path)


def test_columns_that_cannot_be_found_are_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, ["x"] * 6, label="text")
    said = refusal("parquet", tmp_path)
    assert "columns ['image', 'text'], where image and class numbers are due" in said
    assert "`data.image` and `data.label`" in said
    assert "where photo and" in refusal("parquet", tmp_path, image="photo")
    assert "where text and text are due" in refusal("parquet", tmp_path, image="text", label="text")


def test_absent_and_broken_files_are_named(tmp_path: Path) -> None:
    said = refusal("parquet", tmp_path, path="sub")
    assert f"{tmp_path}/sub has no train-*.parquet" in said and "`data.train_files`" in said
    path = write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    assert "has no t-*.parquet" in refusal("parquet", tmp_path, test_files="t-*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert f"cannot read {path}" in refusal("parquet", tmp_path)
    assert "cannot read the data" in refusal("parquet", tmp_path, path="nosuchsystem://bucket/x")


@pytest.mark.parametrize("path", ["../x", "s3://bucket/../x", "~/x"])
def test_paths_that_climb_are_refused(path: str) -> None:
    with pytest.raises(SpecError, match="data.path"):
        source_of(Data(name="parquet", root="x", path=path))
