from pathlib import Path

import numpy as np

from raycnn.data.images.cache import open_cache
from tests.support.images import MakeJob, pixels, source
from tests.support.runs import train


def test_images_are_a_function_of_the_seed_and_their_row(tmp_path: Path) -> None:
    one, same, other = (
        source("synthetic", tmp_path, train=30, test=6, seed=seed).read() for seed in (1, 1, 2)
    )
    whole = pixels(one["train"])
    assert (whole == pixels(same["train"])).all() and (whole != pixels(other["train"])).any()
    rows = np.array([29, 4, 4])
    assert (one["train"].images[rows] == whole[rows]).all()
    assert not (pixels(one["test"]) == whole[:6]).all(axis=(1, 2, 3)).any()


def test_the_images_are_the_same_on_every_machine(tmp_path: Path) -> None:
    cache = open_cache("synthetic", source("synthetic", tmp_path, train=20, test=20, size=9), {})
    assert cache.fingerprint == "df6622cdac831f06aa500c263c602b68"


def test_shape_and_classes_are_as_asked_for(tmp_path: Path) -> None:
    made = source("synthetic", tmp_path, classes=7, size=[5, 9], channels=1, train=14, test=7)
    assert made.shape == (1, 5, 9) and len(made.classes) == 7
    splits = made.read()
    assert pixels(splits["train"]).shape == (14, 5, 9, 1)
    assert np.bincount(splits["train"].labels).tolist() == [2] * 7


def test_a_network_learns_the_classes(job: MakeJob) -> None:
    data = {"name": "synthetic", "classes": 4, "size": 16, "train": 400, "test": 100}
    run = train(job(data=data, model__pool="max", train__epochs=4))
    assert (run.result() or {})["test"]["acc1"] > 0.9
