"""The learning-rate range test."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raycnn.analysis.lr_finder import RangeTest, find_lr
from raycnn.config.load import load_job
from raycnn.errors import JobFailed
from tests.support.jobs import ROOT
from tests.support.processes import Call

CPU = torch.device("cpu")


def test_the_steepest_fall_is_suggested_whatever_the_noise() -> None:
    rates = np.logspace(-6, 0, 100)
    falling = 2.3 - 2 / (1 + np.exp(-3 * (np.log10(rates) + 3)))  # steepest at 1e-3
    rising = 5 * np.maximum(0, np.log10(rates) + 1) ** 2
    noise = np.random.default_rng(0).normal(0, 0.02, 100)
    found = RangeTest(rates, falling + rising + noise)
    assert 3e-4 < found.suggestion < 3e-3


def test_of_mnist_it_finds_a_rate_that_trains_and_stops_where_the_loss_diverges(
    real_data: Path,
) -> None:
    root = {"data.root": str(real_data)}
    job = load_job(ROOT / "jobs" / "lenet-mnist-modern.yaml").change({"data.limit": 2000} | root)
    found = find_lr(job, CPU, low=1e-5, high=100.0, steps=60)
    assert len(found.rates) < 60, "it stopped before the last rate"
    assert 1e-3 < found.suggestion < 1
    again = find_lr(job, CPU, low=1e-5, high=100.0, steps=60)
    assert (again.losses == found.losses).all()


def test_a_sweep_that_diverges_at_once_says_so() -> None:
    job = load_job(ROOT / "jobs" / "quickstart.yaml")
    with pytest.raises(JobFailed, match="smaller rate"):
        find_lr(job, CPU, low=1e10, high=1e12, steps=20)


def test_the_verb_writes_a_plot_and_no_run(call: Call, tmp_path: Path) -> None:
    code, out, err = call(
        "lr-finder", "quickstart", "--steps", "40", "train.batch_size=32", "optimizer.lr=1"
    )
    assert code == 0, err
    rate = float(out.split("suggested optimizer.lr: ")[1].split(",")[0])
    assert out.splitlines()[-1] == (
        f"next: raycnn train quickstart train.batch_size=32 optimizer.lr={rate:g}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["lr-finder.png"]
    assert (tmp_path / "lr-finder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words", [["--min", "0"], ["--min", "2", "--max", "1"], ["-o", "plot.txt"], ["-o", "no/a.png"]]
)
def test_what_makes_no_sweep_is_refused(call: Call, tmp_path: Path, words: list[str]) -> None:
    code, _, _ = call("lr-finder", "quickstart", *words)
    assert code == 2 and not list(tmp_path.iterdir())
