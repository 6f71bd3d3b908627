"""Data sets: the real files where they are at hand, and what people give instead of them."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from raycnn.config.schema import Data
from raycnn.data.sources.digits import Digits
from raycnn.data.sources.idx import FILES, read_idx
from raycnn.data.splits import source_of
from raycnn.errors import DataError
from tests.support.images import pixels, png, refusal, source, write_parquet


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int = 20, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = idx(np.arange(count) % 10 if "labels" in name else np.zeros((count, 28, 28)))
        (folder / name).write_bytes(replaced.get(name.replace("-", "_"), content))


def write_cifar(
    folder: Path, images: list[bytes | None], labels: list[object], column: str = "label"
) -> None:
    for split in ("train", "test"):
        path = folder / f"{split}-00000-of-00001.parquet"
        write_parquet(path, images, labels, image="img", label=column)


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    theirs, splits = load_digits(), Digits().read()
    images = np.concatenate([splits["train"].images, splits["test"].images]).astype(float)
    assert len(images) == 1797 and len(splits["test"].labels) == 357
    assert sorted(map(bytes, np.rint(images[..., 0] / 255 * 16).astype(np.uint8))) == sorted(
        map(bytes, theirs.images.astype(np.uint8))
    )
    counts = np.bincount(splits["test"].labels)
    assert counts.min() >= 35 and counts.max() <= 36


def test_mnist_is_read_from_its_own_files(real_data: Path) -> None:
    splits = source("mnist", real_data).read()
    assert splits["train"].images.shape == (60_000, 28, 28, 1)
    assert splits["test"].labels.tolist()[:5] == [7, 2, 1, 0, 4]
    assert round(splits["train"].images.mean() / 255, 4) == 0.1307


def test_cifar10_is_read_from_parquet(real_data: Path) -> None:
    splits = source("cifar10", real_data).read()
    assert len(splits["train"].images) == len(splits["train"].labels) == 50_000
    assert splits["test"].labels.tolist()[:5] == [3, 8, 8, 0, 6]
    assert np.bincount(splits["test"].labels).tolist() == [1000] * 10
    means = pixels(splits["test"]).reshape(-1, 3).mean(0) / 255
    assert means.round(4).tolist() == [0.4942, 0.4851, 0.4504]


def test_cifar10_is_read_from_the_original_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3072), np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, rows in zip(names, noise, strict=True):
        batch = {b"data": rows, b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    splits = source("cifar10", tmp_path).read()
    assert splits["train"].images.shape == (50, 32, 32, 3)
    assert (splits["test"].images[3, :, :, 1].ravel() == noise[5, 3, 1024:2048]).all()


def test_cifar100_is_read_from_the_original_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 100, 3072), np.uint8)
    for name, rows in zip(["train", "test"], noise, strict=True):
        coarse, fine = [0] * 100, list(range(100))
        batch = {b"data": rows, b"coarse_labels": coarse, b"fine_labels": fine}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    made = source("cifar100", tmp_path)
    splits = made.read()
    assert made.classes[:2] == ("apple", "aquarium_fish") and made.classes[99] == "worm"
    assert len(set(made.classes)) == 100 and list(made.classes) == sorted(made.classes)
    assert splits["train"].labels.tolist() == list(range(100))
    assert (pixels(splits["test"])[3, :, :, 2].ravel() == noise[1, 3, 2048:]).all()


def test_cifar100_is_read_from_parquet_by_its_fine_labels(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar100", [png(), png(color=9)], [99, 0], column="fine_label")
    train = source("cifar100", tmp_path).read()["train"]
    assert train.labels.tolist() == [99, 0] and pixels(train)[1, 0, 0].tolist() == [9, 0, 0]


class Evil:
    def __reduce__(self) -> object:
        return (Path("/tmp/raycnn-was-here").touch, ())


def test_a_pickled_batch_can_run_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    assert "which is not plain data" in refusal("cifar10", tmp_path)
    assert not Path("/tmp/raycnn-was-here").exists()


def test_plain_and_gzipped_idx_are_the_same(tmp_path: Path) -> None:
    raw = idx(np.arange(6).reshape(1, 2, 3))
    (tmp_path / "a").write_bytes(raw)
    (tmp_path / "b.gz").write_bytes(gzip.compress(raw))
    assert (read_idx(tmp_path / "a", (2, 3)) == read_idx(tmp_path / "b.gz", (2, 3))).all()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_absent_data_says_where_it_was_looked_for_and_how_to_get_it(
    name: str, tmp_path: Path
) -> None:
    said = refusal(name, tmp_path)
    assert str(tmp_path) in said and "data.download=true" in said and "RAYCNN_DATA" in said


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_download_that_fails_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing listens: as without a network
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DataError, match=f"{name} .*{tmp_path}"):
        source_of(Data(name=name, root=str(tmp_path), download=True)).files()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train_images_idx3_ubyte", b"", "is not an IDX file"),
        ("train_images_idx3_ubyte", b"<html>not found</html>", "is not an IDX file"),
        ("train_images_idx3_ubyte", idx(np.zeros((20, 28, 28)))[:-5], "header"),
        ("train_images_idx3_ubyte", idx(np.zeros((20, 8, 8))), "images of (8, 8)"),
        ("train_labels_idx1_ubyte", idx(np.zeros(19)), "20 images"),
        ("train_images_idx3_ubyte", idx(np.zeros((30, 28, 28)))[:9000], "30 images"),  # not read
        ("t10k_labels_idx1_ubyte", idx(np.full(20, 10)), "row 0 has label 10"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    write_mnist(tmp_path / "mnist", **{file: content})
    message = refusal("mnist", tmp_path)
    assert said in message and file.replace("_", "-") in message


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    path = tmp_path / "mnist" / FILES[0]
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    assert f"cannot read {path}.gz" in refusal("mnist", tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ([png(), b"<html>"], [0, 1], "row 1 "),
        ([png(), None], [0, 1], "row 1 "),
        ([png(), png()[:60]], [0, 1], "row 1 "),
        ([png(), png((16, 16))], [0, 1], "row 1 is 16x16, not 32x32"),
        ([png(), png()], [0, None], "row 1 has label None"),
        ([png(), png()], [0, 10], "row 1 has label 10"),
        ([png(), png()], [0, -1], "row 1 has label -1"),
        ([png(), png()], [0.0, 0.5], "row 0 has label 0.0"),
        ([png(), png()], ["cat", "dog"], "row 0 has label 'cat'"),
    ],
)
def test_a_broken_row_of_parquet_is_named(
    tmp_path: Path, images: list[bytes | None], labels: list[object], said: str
) -> None:
    write_cifar(tmp_path / "cifar10", images, labels)
    assert said in refusal("cifar10", tmp_path)


def test_parquet_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10", [png()], [0], column="fine_label")
    assert "['img', 'fine_label']" in refusal("cifar10", tmp_path)


def test_parquet_without_a_footer_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10", [png()], [0])
    path = tmp_path / "cifar10" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert f"cannot read {path}" in refusal("cifar10", tmp_path)


def test_idx_files_may_have_a_dot_in_their_names_or_lie_in_folders_of_them(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    for name in FILES:
        path = tmp_path / "mnist" / name
        content = path.read_bytes()
        path.unlink()
        dotted = path.with_name(name.replace("-idx", ".idx"))
        if "images" in name:
            dotted.mkdir()
            dotted /= dotted.name
        dotted.write_bytes(content)
    assert len(source("mnist", tmp_path).read()["train"].labels) == 20


def test_the_wanted_files_are_listed(tmp_path: Path) -> None:
    said = refusal("mnist", tmp_path)
    assert all(name in said for name in FILES)
    assert "cifar-10-batches-py" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ((2**32 - 1, 28, 28), b""),  # 3 TB
        ((2**31, 2**31, 4), b""),  # overflows 64 bits
        ((10**7, 28, 28), gzip.compress(bytes(1000))),
        ((20, 28, 28), gzip.compress(bytes(10**7))),  # more than it says
    ],
    ids=["too many", "overflow", "fewer inside", "more inside"],
)
def test_an_idx_header_is_compared_with_the_file_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], content: bytes
) -> None:
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape)
    write_mnist(tmp_path / "mnist", train_images_idx3_ubyte=head + content)
    assert "train-images-idx3-ubyte" in refusal("mnist", tmp_path)
    path = tmp_path / "mnist" / FILES[0]
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(head + content))
    path.unlink()
    assert "train-images-idx3-ubyte.gz" in refusal("mnist", tmp_path)


def test_a_file_that_memory_cannot_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setattr("raycnn.runtime.memory.available", lambda: 100)
    assert "train-images-idx3-ubyte" in refusal("mnist", tmp_path)
