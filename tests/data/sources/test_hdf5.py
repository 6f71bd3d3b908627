import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support.hdf5 import TWO, both, noise, write
from tests.support.images import pixels, refusal, source


def test_signs_are_read_as_they_come(real_data: Path) -> None:
    made = source("hdf5", real_data, path="signs")
    splits = made.read()
    assert made.classes == tuple("012345") and made.shape == (3, 64, 64)
    assert [len(splits[name].labels) for name in ("train", "test")] == [1080, 120]
    with h5py.File(real_data / "signs" / "test_signs.h5") as file:
        assert (pixels(splits["test"]) == file["test_set_x"][:]).all()
        assert (splits["test"].labels == file["test_set_y"][:]).all()


def test_rows_come_in_any_order_and_more_than_once(real_data: Path) -> None:
    images = source("hdf5", real_data, path="signs").read()["train"].images
    rows = np.array([900, 3, 3, 61])
    with h5py.File(real_data / "signs" / "train_signs.h5") as file:
        assert (images[rows] == np.stack([file["train_set_x"][row] for row in rows])).all()


def test_images_that_were_opened_can_be_sent_to_another_process(tmp_path: Path) -> None:
    images = source("hdf5", both(tmp_path, noise(), TWO)).read()["train"].images
    rows = np.arange(10)
    assert (pickle.loads(pickle.dumps(images))[rows] == images[rows]).all()


@pytest.mark.parametrize(
    ("given", "expected", "options"),
    [
        (noise(), noise(), {}),
        (noise().transpose(0, 3, 1, 2), noise(), {}),
        (noise(shape=(3, 4, 3)).transpose(0, 3, 1, 2), noise(shape=(3, 4, 3)), {"layout": "nchw"}),
        (noise(shape=(6, 5)), noise(shape=(6, 5, 1)), {}),
        (noise() / 255, noise(), {}),
        ((noise() / 255).astype(np.float32), noise(), {}),
        (noise().astype(np.float64), noise(), {}),
        (noise().astype(np.int64), noise(), {}),
        (noise() // 255, noise() // 255, {"max_value": 255}),
        (noise() // 255, noise() // 255 * 255, {"max_value": 1}),
        (noise() > 128, (noise() > 128) * 255, {}),
        ((noise() // 255).astype(float), noise() // 255, {"max_value": 255}),
        (noise().astype(np.uint16) * 16, noise(), {}),
        (noise().astype(np.uint16) * 257, noise(), {}),
        (noise() // 16, np.rint(noise() // 16 * 15.9375), {"max_value": 16}),
    ],
)
def test_layouts_and_scales_come_to_the_same_images(
    tmp_path: Path, given: np.ndarray, expected: np.ndarray, options: dict[str, Any]
) -> None:
    made = source("hdf5", both(tmp_path, given, TWO), **options)
    split = made.read()["train"]
    height, width, channels = expected.shape[1:]
    assert (pixels(split) == expected).all() and split.images[np.arange(1)].dtype == np.uint8
    assert made.shape == (channels, height, width) and made.classes == ("one", "zwölf")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (TWO.astype(float), ("0", "1")),
        (TWO.astype(bool), ("0", "1")),
        (np.eye(2)[TWO], ("0", "1")),
        (np.eye(2, dtype=np.uint8)[TWO], ("0", "1")),
        (TWO.reshape(10, 1, 1, 1), ("0", "1")),
        (np.array([b"dog", b"cat"])[TWO[::-1]], ("cat", "dog")),
        (TWO + 1, ("1", "2")),
    ],
)
def test_labels_of_every_kind_are_class_indices(
    tmp_path: Path, labels: np.ndarray, classes: tuple[str, ...]
) -> None:
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"{split}_signs.h5", "w") as file:
            file[f"{split}_set_x"], file[f"{split}_set_y"] = noise(), labels
    made = source("hdf5", tmp_path)
    assert made.classes == classes
    assert made.read()["test"].labels.tolist() == TWO.tolist()


@pytest.mark.parametrize("shape", [(10,), (10, 1), (1, 10)])
def test_labels_may_lie_in_a_row_or_a_column(tmp_path: Path, shape: tuple[int, ...]) -> None:
    splits = source("hdf5", both(tmp_path, noise(), TWO.reshape(shape))).read()
    assert splits["test"].labels.tolist() == TWO.tolist()


def test_without_a_test_file_a_share_is_held_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["inner/x"], file["inner/y"] = noise(), TWO
    keys = {"images": "inner/x", "labels": "inner/y", "classes": None}
    made = source("hdf5", tmp_path, train_file="all.h5", test_file=None, test=0.4, **keys)
    splits = made.read()
    assert made.classes == ("0", "1")
    assert np.bincount(splits["test"].labels).tolist() == [2, 2]
    together = np.concatenate([pixels(splits["train"]), pixels(splits["test"])])
    assert sorted(map(bytes, together)) == sorted(map(bytes, noise()))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (noise(), TWO[:9], "10 images and 9 labels"),
        (noise(), TWO * 2, "row 1 has label 2"),
        (noise(), TWO - 1, "row 0 has label -1"),
        (noise(), TWO / 2, "row 1 has label 0.5"),
        (noise(), np.array([b"cat", b"dog"] * 5), "row 0 has label 'cat'"),
        (noise(), np.eye(10, 2), "row 2 has label [0.0, 0.0]"),
        (noise(), np.zeros((10, 2, 2)), "(10, 2, 2)"),
        (noise(shape=(3, 4, 3)), TWO, "set `data.layout` to nhwc or nchw"),
        (noise(shape=(6, 5, 7)), TWO, "set `data.layout` to nhwc or nchw"),
        (noise(shape=(4,)), TWO, "uint8 (10, 4)"),
        (noise() * 256.0, TWO, "`data.max_value`"),
        (noise() / 255 * 1.0001, TWO, "`data.max_value`"),
        (noise() // 255, TWO, "`data.max_value`"),
        (noise() / 127.5 - 1, TWO, "`data.max_value`"),
        (np.full((10, 6, 5, 3), np.nan), TWO, "train_set_x ranges from nan"),
        (np.full((10, 6, 5, 3), -1), TWO, "train_set_x ranges from -1 to -1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, images: Any, labels: Any, said: str
) -> None:
    message = refusal("hdf5", both(tmp_path, images, labels))
    assert said in message and "train_signs.h5" in message


def test_absent_keys_and_files_are_named_with_their_options(tmp_path: Path) -> None:
    both(tmp_path, noise(), TWO)
    said = refusal("hdf5", tmp_path, images="x", labels="{split}_set_y")
    assert all(
        key in said for key in ("list_classes", "train_set_x", "train_set_y", "`data.images`")
    )
    assert "set `data.labels`" in refusal("hdf5", tmp_path, labels="y")
    assert "set `data.classes`" in refusal("hdf5", tmp_path, classes="names")
    assert "absent.h5" in refusal("hdf5", tmp_path, test_file="absent.h5")


def test_what_is_not_hdf5_is_named(tmp_path: Path) -> None:
    path = both(tmp_path, noise(), TWO) / "train_signs.h5"
    path.write_bytes(path.read_bytes()[:900])
    assert f"cannot read {path} as HDF5" in refusal("hdf5", tmp_path)
    path.write_text("<html>")
    assert f"cannot read {path} as HDF5" in refusal("hdf5", tmp_path)


def test_files_of_other_classes_are_refused_with_both_lists(tmp_path: Path) -> None:
    both(tmp_path, noise(), TWO)
    write(tmp_path / "test_signs.h5", noise(), TWO, "test", classes=np.array([4, 5]))
    said = refusal("hdf5", tmp_path)
    assert "train has one, zwölf; test has 4, 5" in said


def test_images_and_labels_may_be_in_two_files_under_any_key(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("valid", 4), ("test", 6)):
        with h5py.File(tmp_path / f"{split}_x.h5", "w") as file:
            file["x"] = noise(count)
        with h5py.File(tmp_path / f"{split}_y.h5", "w") as file:
            file["y"] = TWO[:count].reshape(-1, 1, 1, 1)
    options = {
        f"{split}_{what}": f"{name}_{letter}.h5"
        for split, name in (("train", "train"), ("val", "valid"), ("test", "test"))
        for what, letter in (("file", "x"), ("labels_file", "y"))
    }
    made = source("hdf5", tmp_path, **options)
    splits = made.read()
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 10, "val": 4, "test": 6,
    }  # fmt: skip
    assert (pixels(splits["val"]) == noise(4)).all()
    assert len(made.files()) == 6 and made.classes == ("0", "1")
    assert any("'y'" in said for said in splits["train"].warnings)


def test_one_value_in_a_later_row_outside_the_range_is_named(tmp_path: Path) -> None:
    images = np.tile(noise(1) / 255, (1000, 1, 1, 1))
    images[501, 0, 0, 0] = 1.5
    both(tmp_path, images, np.arange(1000) % 2)
    said = refusal("hdf5", tmp_path)
    assert "row 501 of train_set_x" in said and "`data.max_value`" in said


@pytest.mark.parametrize("chunks", [None, (1, 64, 64, 3)])
def test_images_that_were_never_written_are_refused_before_they_are_read(
    tmp_path: Path, chunks: tuple[int, ...] | None
) -> None:
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"{split}_signs.h5", "w") as file:
            file.create_dataset(f"{split}_set_x", (10**6, 64, 64, 3), np.uint8, chunks=chunks)
            file[f"{split}_set_y"] = np.arange(10**6) % 2
    said = refusal("hdf5", tmp_path)
    assert "train_set_x" in said and "train_signs.h5" in said


def test_a_test_file_without_labels_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    both(tmp_path, noise(), TWO)
    write(tmp_path / "test_signs.h5", noise(), np.full(10, -1), "test")
    splits = source("hdf5", tmp_path, test=0.4).read()
    assert len(splits["test"].labels) == 4 and len(splits["train"].labels) == 6
    assert any("10 images of test" in said for said in splits["train"].warnings)
