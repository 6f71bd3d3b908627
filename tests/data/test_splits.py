"""A data set with a validation split of its own: held out, or trained on as well."""

from pathlib import Path

import numpy as np
import pytest

from raycnn.config.load import job_from_tree
from raycnn.data.splits import Splits, open_splits
from tests.support.images import write_pictures
from tests.support.jobs import TINY


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_pictures(tmp_path / "pictures" / split, ["a", "b"], count)
    return tmp_path


def opened(root: Path, val: float, cache: str) -> Splits:
    data = {"name": "folder", "root": str(root), "path": "pictures", "size": 8, "cache": cache}
    return open_splits(job_from_tree(TINY | {"data": data | {"val": val}}))


def images(splits: Splits, split: str) -> np.ndarray:
    source_split, rows = splits.members[split]
    return splits.cache.splits[source_split].images[rows]


@pytest.mark.parametrize("cache", ["store", "stream"])
def test_its_images_are_held_out_or_with_val_0_trained_on_behind_the_others(
    pictures: Path, cache: str
) -> None:
    apart, joined = opened(pictures, 0.1, cache), opened(pictures, 0.0, cache)
    counts = [[len(s.labels(name)) for name in ("train", "val", "test")] for s in (apart, joined)]
    assert counts == [[12, 6, 4], [18, 0, 4]]
    both = np.concatenate([images(apart, "train"), images(apart, "val")])
    assert (images(joined, "train") == both).all()
    assert (joined.labels("train") == [*apart.labels("train"), *apart.labels("val")]).all()
    turned = joined.cache.splits["train"].images[np.array([17, 0, 12, 5])]
    assert (turned == both[[17, 0, 12, 5]]).all(), "in any order"
    assert joined.pipeline.mean[0] == pytest.approx(both[..., 0].mean() / 255), "of all of them"
    assert joined.cache.splits["train"].name(17) == "b/2.png"
