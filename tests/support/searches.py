"""A small search, written to a file and read again, as a person's is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from raycnn.config.search import Pool, TrialKey, TuneSpec, load_search
from raycnn.launch import trial
from raycnn.search.folder import Search, Trial

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


CPU = Pool(device="cpu")


def begin(search: Search, rates: list[float]) -> list[Trial]:
    """A trial of each learning rate, which has not been trained."""
    (architecture,) = search.spec.architectures
    return [
        search.begin(TrialKey(architecture, n), {"optimizer.lr": r}, CPU)
        for n, r in enumerate(rates)
    ]


class SilentView:
    """A view of a search that shows nothing."""

    def log(self, text: str) -> None:
        pass

    def show(self, search: Search, running: list[str]) -> None:
        pass


def go(search: Search, *trials: Trial, deadline: float | None = None) -> None:
    """Train trials here, one after another."""
    for one in trials:
        trial.run_trial(
            one, partial(trial.fit_trial_alone, search, one, torch.device("cpu"), deadline)
        )


def run_all(search: Search) -> Search:
    """Train all trials here, without Ray."""
    trial.run_here(search, SilentView())
    return search
