"""Data sets at a URI, on a server of S3's protocol, are read as from a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycnn.config.schema import Data
from raycnn.data.sources.base import Source, files_of
from raycnn.data.splits import source_of
from raycnn.errors import DataError
from tests.support.hdf5 import TWO, both, noise
from tests.support.images import pixels, png, write_parquet, write_pictures
from tests.support.s3 import Server


def made(name: str, **options: Any) -> Source:
    return source_of(Data(name=name, **options))


def upload(s3: Server, folder: Path) -> str:
    """Put the files of a folder into a new bucket; return their URI."""
    bucket = s3.bucket()
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"data/{path.relative_to(folder)}"
            s3.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return s3.uri(bucket, "data")


def same(one: Source, other: Source) -> bool:
    first, second = one.read(), other.read()
    return (one.shape, one.classes) == (other.shape, other.classes) and all(
        (pixels(first[name]) == pixels(second[name])).all()
        and (first[name].labels == second[name].labels).all()
        for name in {*first, *second}
    )


def test_a_folder_of_pictures(s3: Server, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["cat", "dog"], 5)
    uri = upload(s3, tmp_path / "pictures")
    remote = made("folder", path=uri)
    assert same(remote, made("folder", root=str(tmp_path), path="pictures"))
    before = files_of(remote)
    assert files_of(made("folder", path=uri)) == before

    (tmp_path / "pictures" / "cat" / "new.png").write_bytes(png((6, 4)))
    s3.client.put_object(Bucket=uri.split("/")[2], Key="data/cat/new.png", Body=png((6, 4)))
    changed = made("folder", path=uri)
    assert files_of(changed) != before
    assert same(changed, made("folder", root=str(tmp_path), path="pictures"))


def test_hdf5_files(s3: Server, tmp_path: Path) -> None:
    both(tmp_path, noise(), TWO)
    (tmp_path / "other").write_text("not read, and so not copied")
    uri = upload(s3, tmp_path)
    remote = made("hdf5", path=uri)
    assert same(remote, made("hdf5", root=str(tmp_path)))
    assert {Path(path).name for path in remote.files()} == {"train_signs.h5", "test_signs.h5"}


def test_parquet_files(s3: Server, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [png((5, 4), c) for c in range(6)], [0, 1] * 3)
    uri = upload(s3, tmp_path)
    remote = made("parquet", path=uri)
    assert same(remote, made("parquet", root=str(tmp_path)))
    assert np.all([file.name.startswith("s3://") for file in files_of(remote)])


def test_what_is_not_there_is_named(s3: Server) -> None:
    with pytest.raises(DataError, match="nowhere"):
        made("folder", path=s3.uri("nowhere")).files()
    with pytest.raises(DataError, match="no files"):
        made("folder", path=s3.uri(s3.bucket())).files()
    with pytest.raises(DataError, match="train_signs.h5"):
        made("hdf5", path=s3.uri(s3.bucket())).files()
