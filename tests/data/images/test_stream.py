"""Images that are decoded whenever they are used: the same as from the cache, only slower."""

import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory import pss_mib
from raycnn.config.schema import JobSpec
from raycnn.data.images import decoders
from raycnn.data.images.cache import open_cache
from raycnn.data.splits import open_splits
from raycnn.runtime import device
from tests.support.images import MakeJob, pixels, source, write_pictures
from tests.support.runs import numbers, same, train, weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path, job: MakeJob) -> MakeJob:
    """A job on 60 pictures of two classes, one of which cannot be read."""
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 30, (17, 13))
    (top / "a" / "11.png").write_text("<html>")

    def make(cache: str) -> JobSpec:
        data = {"name": "folder", "root": str(top), "size": 12, "cache": cache, "max_bad": 1}
        return job(
            data=data | {"transforms": ["horizontal_flip"]}, train__epochs=2, train__batch_size=10
        )

    return make


def test_a_streamed_job_equals_a_stored_one_bit_for_bit(pictures: MakeJob, own_cache: Path) -> None:
    streamed = train(pictures("stream"))
    assert not list(own_cache.rglob("images.npy"))
    stored = train(pictures("store"))
    assert same(weights(streamed), weights(stored))
    assert numbers(streamed) == numbers(stored)


def test_batches_are_the_same_from_the_cache_and_from_the_stream(pictures: MakeJob) -> None:
    stream, cached = (open_splits(pictures(kind)) for kind in ("stream", "store"))
    assert stream.cache.fingerprint == cached.cache.fingerprint
    assert stream.warnings == cached.warnings and "11.png" in stream.warnings[0]
    for split in ("train", "val", "test"):
        one, other = (
            splits.loader(split, pictures("auto"), torch.device("cpu"), split == "train").epoch(1)
            for splits in (stream, cached)
        )
        for batch, due in zip(one, other, strict=True):
            assert torch.equal(batch.images, due.images) and torch.equal(batch.labels, due.labels)


def test_a_stream_is_gone_through_once_for_its_numbers(
    pictures: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_splits(pictures("stream"))
    monkeypatch.setattr("raycnn.data.images.decode.decode", None)  # what would decode cannot
    again = open_splits(pictures("stream"))
    assert (again.cache.splits["train"].sums == first.cache.splits["train"].sums).all()
    assert again.pipeline.mean == first.pipeline.mean


@pytest.mark.parametrize(("free", "kept"), [(2**30, False), (2**31, True)])
def test_images_that_do_not_fit_on_the_disk_are_streamed(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: bool
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "raycnn.data.images.cache.shutil.disk_usage", lambda path: usage(0, 0, free)
    )
    cache = open_cache("synthetic", source("synthetic", tmp_path, train=20, test=20), {})
    assert bool(list(own_cache.rglob("images.npy"))) == kept
    direct = source("synthetic", tmp_path, train=20, test=20).read()["test"]
    assert (cache.splits["test"].images[np.arange(20)] == pixels(direct)).all()


def test_memory_stays_flat_over_epochs(
    tmp_path: Path, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "START_S", 0)
    monkeypatch.setattr(device, "cpu_threads", lambda: 2)
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 30, (256, 256))
    data = {"name": "folder", "root": str(top), "cache": "stream", "val": 0}
    spec = job(data=data, train__batch_size=10)
    loader = open_splits(spec).loader("train", spec, torch.device("cpu"), training=True)

    def mib_after(epochs: range) -> float:
        for epoch in epochs:
            assert sum(len(batch.labels) for batch in loader.epoch(epoch)) == 48
        return pss_mib(os.getpid())

    before = mib_after(range(3))
    assert mib_after(range(3, 9)) - before < 20  # an epoch decodes 9 MiB, and has 36 as floats
