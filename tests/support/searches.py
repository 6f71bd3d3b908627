"""A small search, written to a file and read again, as a person's is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.search import TuneSpec, load_search

BASE = """\
name: tiny
data: {name: digits, limit: 200, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 3, batch_size: 32}
storage: {path: STORAGE}
"""

SPACE = "tune: {trials: 2, space: {optimizer.lr: {loguniform: [1e-3, 1]}}}\n"

Read = Callable[..., TuneSpec]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A search over the base job, of the text that follows it, with changes."""

    def load(text: str = SPACE, *changes: str, base: str = BASE) -> TuneSpec:
        path = tmp_path / "tiny.tune.yaml"
        path.write_text(base.replace("STORAGE", str(tmp_path / "runs")) + text)
        return load_search(path, changes)

    return load
