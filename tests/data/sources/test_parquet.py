import pickle
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycnn.config.schema import Data
from raycnn.data.sources.base import files_of
from raycnn.data.splits import source_of
from raycnn.errors import DataError, SpecError
from tests.support.images import pixels, png, refusal, source, write_parquet

SIX = [png((5, 4), color) for color in range(6)]


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


def test_any_file_system_of_fsspec_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    with fsspec.open("memory://pictures/train-0.parquet", "wb") as file:
        file.write((tmp_path / "train-0.parquet").read_bytes())
    remote = source("parquet", Path("nowhere"), path="memory://pictures")
    (file,) = files_of(remote)
    assert file.name == "memory://pictures/train-0.parquet" and file.size
    assert reds(remote.read()["train"]) == reds(source("parquet", tmp_path).read()["train"])
    time.sleep(0.01)
    with fsspec.open("memory://pictures/train-0.parquet", "wb") as written:
        written.write((tmp_path / "train-0.parquet").read_bytes())
    (again,) = files_of(remote)
    assert again.size == file.size and again.modified_ns > file.modified_ns


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
    for mode in (None, "gray"):
        said = refusal("parquet", tmp_path, mode=mode)
        assert "row 6 is 40x9, not 5x4" in said and "`data.size`" in said
    made = source("parquet", tmp_path, size=[6, 7], mode="rgb")
    assert pixels(made.read()["train"]).shape[1:] == (6, 7, 3)


@pytest.mark.parametrize(
    ("cells", "labels", "said"),
    [
        ([*SIX[:5], b"<html>"], [0, 1] * 3, "train-0.parquet: row 5"),
        ([*SIX[:5], None], [0, 1] * 3, "train-0.parquet: row 5"),
        (SIX, [0, 1, 0, 1, 0, None], "train-0.parquet: row 5 has label None"),
        (SIX, [0, 1, 0, 1, 0, -1], "train-0.parquet: row 5 has label -1"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, cells: Any, labels: Any, said: str) -> None:
    write_parquet(tmp_path / "train-0.parquet", cells, labels, group=2)
    assert said in refusal("parquet", tmp_path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([[0, 1]] * 5 + [[1]], "row 0 has label"), ([0.5] * 6, "row 0 has label 0.5")],
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
    assert "label 1000000000000 exceeds the maximum" in refusal("parquet", tmp_path)


def test_columns_that_cannot_be_found_are_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, ["x"] * 6, label="text")
    said = refusal("parquet", tmp_path)
    assert "['image', 'text']" in said and "`data.image` and `data.label`" in said
    assert "photo" in refusal("parquet", tmp_path, image="photo")


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


NAMES = ["dog", "cat", "dog", "cat", "eel", "eel"]


@pytest.mark.parametrize("dictionary", [False, True])
def test_labels_that_are_names_are_classes_in_their_order(tmp_path: Path, dictionary: bool) -> None:
    labels = pa.array(NAMES).dictionary_encode() if dictionary else NAMES
    write_parquet(tmp_path / "train-0.parquet", SIX, labels)
    write_parquet(tmp_path / "test-0.parquet", SIX[:2], ["eel", "cat"])
    made = source("parquet", tmp_path)
    assert made.classes == ("cat", "dog", "eel")
    assert made.read()["train"].labels.tolist() == [1, 0, 1, 0, 2, 2]
    assert made.read()["test"].labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    "labels", [[0.0, 1.0] * 3, [False, True] * 3, [[1, 0], [0, 1]] * 3, [1, 2] * 3, ["a", "b"] * 3]
)
def test_labels_of_every_kind_are_class_indices(tmp_path: Path, labels: list[Any]) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, labels)
    train = source("parquet", tmp_path, test=0.34).read()["train"]
    assert train.labels.tolist() == [red % 2 for red in reds(train)] and len(train.labels) == 4


def test_a_name_that_train_does_not_have_is_named_with_its_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, NAMES)
    write_parquet(tmp_path / "test-0.parquet", SIX[:2], ["cat", "cow"])
    assert "test-0.parquet: row 1 has label 'cow'" in refusal("parquet", tmp_path)


@pytest.mark.parametrize("relative", [True, False])
def test_pictures_may_be_given_by_their_paths(tmp_path: Path, relative: bool) -> None:
    (tmp_path / "files").mkdir()
    cells = []
    for number, content in enumerate(SIX):
        (tmp_path / "files" / f"{number}.png").write_bytes(content)
        path = f"files/{number}.png" if relative else str(tmp_path / "files" / f"{number}.png")
        cells.append({"bytes": None, "path": path})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "label": [0, 1] * 3})
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=2)
    made = source("parquet", tmp_path, test=0.34)
    assert made.classes == ("0", "1") and made.shape == (3, 4, 5)
    assert sorted([*reds(made.read()["train"]), *reds(made.read()["test"])]) == list(range(6))
    assert len(made.files()) == 7, "a changed picture is other data"
    (tmp_path / "files" / "3.png").unlink()
    assert "3.png" in str(pytest.raises(DataError, files_of, made).value)


def test_a_test_split_without_labels_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    for labels in ([-1, -1], [None, None]):
        write_parquet(tmp_path / "test-0.parquet", SIX[:2], pa.array(labels, pa.int64()))
        splits = source("parquet", tmp_path, test=0.34).read()
        assert len(splits["test"].labels) == 2 and len(splits["train"].labels) == 4
        assert any("2 images of test" in said for said in splits["train"].warnings)


@pytest.mark.parametrize(
    "name",
    ["train.parquet", "train/0000.parquet", "data/train-0.parquet", "default/train/0.parquet"],
)
def test_files_are_found_where_hugging_face_puts_them(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / name, SIX, [0, 1] * 3)
    assert source("parquet", tmp_path).files() == [str(tmp_path / name)]


def test_a_row_group_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    monkeypatch.setattr("raycnn.runtime.memory.available", lambda: 100)
    assert "train-0.parquet" in refusal("parquet", tmp_path)


@pytest.mark.parametrize(
    ("lists", "names", "classes"),
    [
        ([["a", "b"], [], ["b"], None, ["a"], ["b"]], None, ("a", "b")),
        ([[0, 1], [], [1], [], [0], [1]], ["cat", "dog"], ("cat", "dog")),
        ([[0, 2], [], [1], [], [0], [1]], None, ("0", "1", "2")),
    ],
)
def test_lists_are_any_number_of_labels(
    tmp_path: Path, lists: list[Any], names: list[str] | None, classes: tuple[str, ...]
) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, lists, label="tags", names=names)
    write_parquet(tmp_path / "test-0.parquet", SIX[:1], [[lists[0][0]]], label="tags", names=names)
    made = source("parquet", tmp_path, multi_label=True)
    splits = made.read()
    assert made.classes == classes and splits["train"].labels.shape == (6, len(classes))
    assert splits["train"].labels.sum(1).tolist() == [len(own or ()) for own in lists]
    assert splits["test"].labels[0].tolist() == [1, *[0] * (len(classes) - 1)]
    assert "`data.multi_label: true`" in refusal("parquet", tmp_path)


def test_a_list_with_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", SIX, [[0], [1], [5], [0], [], []], names=["a", "b"])
    said = refusal("parquet", tmp_path, multi_label=True)
    assert "train-0.parquet: row 2 has label 5, which is not a class (a, b)" in said
    write_parquet(tmp_path / "train-0.parquet", SIX, [0, 1] * 3)
    said = refusal("parquet", tmp_path, multi_label=True)
    assert "row 0 has label 0, expected a list" in said
