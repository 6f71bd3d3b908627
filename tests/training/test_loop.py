"""Training in one process, on the CPU: what is exact about it."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raycnn.analysis.evaluate import evaluate_run
from raycnn.config.schema import JobSpec
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.errors import DataError, Diverged, Interrupted, SpecError
from raycnn.runs.directory import Run
from tests.support.runs import numbers, same, train, weights

MakeJob = Callable[..., JobSpec]

RESIZE = {"name": "resize", "size": 12}

# 180 images are trained on, in 6 steps an epoch.
VARIANTS = {
    "sgd": {},
    "adam-clipped": {"optimizer": {"name": "adam", "lr": 1e-3}, "train.clip_norm": 1.0},
    "augmented": {"data.transforms": [RESIZE, {"name": "random_crop", "padding": 2}, {"name": "horizontal_flip"}]},
    "bf16-smoothed": {"train.precision": "bf16", "train.label_smoothing": 0.1},
    "dropout": {"model": {"name": "alexnet", "form": "small"}, "train.epochs": 2, "data.limit": 60,
                "optimizer.lr": 1e-3, "train.batch_size": 10},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_job_equals_unbroken_one(job: MakeJob, variant: str) -> None:
    spec = job(**VARIANTS[variant])
    unbroken = train(spec)
    broken = Run.create(spec)
    for stop_at in (8, 3):  # mid-epoch; and again in the same epoch
        with pytest.raises(Interrupted):
            train(spec, broken, stop_at)
    train(spec, broken)
    assert same(weights(unbroken), weights(broken))
    assert same(weights(unbroken, "best"), weights(broken, "best"))
    assert numbers(unbroken) == numbers(broken)
    figures = [run.per_class() or {} for run in (unbroken, broken)]
    assert figures[0]["confusion"] == figures[1]["confusion"]


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 11, 12, 13])
def test_an_epoch_is_neither_repeated_nor_skipped_around_its_end(
    job: MakeJob, stop_at: int
) -> None:
    """Asked at the last step of an epoch, a job closes it and stops in the next."""
    spec = job()
    unbroken, broken = train(spec), Run.create(spec)
    with pytest.raises(Interrupted):
        train(spec, broken, stop_at)
        pytest.fail("it went on")
    train(spec, broken)
    assert same(weights(unbroken), weights(broken))
    assert [row["epoch"] for row in broken.rows()] == ["1", "2", "3"]


def test_more_epochs_go_on_from_a_finished_run(job: MakeJob) -> None:
    short, long = job(schedule="constant", train__epochs=2), job(schedule="constant")
    run = train(short)
    train(long, run)
    assert same(weights(run), weights(train(long)))
    assert len(run.rows()) == 3


def test_more_epochs_stretch_the_rest_of_the_schedule(job: MakeJob) -> None:
    run, whole = train(job(train__epochs=2)), train(job(train__epochs=4))
    train(job(train__epochs=4), run)
    rates, expected = ([row["lr"] for row in one.rows()] for one in (run, whole))
    assert rates[1] != expected[1] and rates[2:] == expected[2:]


def test_saving_more_often_changes_nothing(job: MakeJob) -> None:
    seldom, often = train(job()), train(job(storage__every_steps=2))
    assert same(weights(seldom), weights(often)) and numbers(seldom) == numbers(often)


def test_the_same_job_gives_the_same_weights_and_another_seed_others(job: MakeJob) -> None:
    first, second, third = train(job()), train(job()), train(job(seed=1))
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(third))


def test_every_image_is_evaluated_once_and_said_so(job: MakeJob) -> None:
    run = train(job())
    result, confusion = run.result() or {}, (run.per_class() or {})["confusion"]
    assert result["test"]["count"] == 357 == sum(count for *_, count in confusion)
    hits = sum(count for label, predicted, count in confusion if label == predicted)
    assert math.isclose(result["test"]["acc1"], hits / 357)
    low, high = result["test"]["interval95"]
    assert low < result["test"]["acc1"] < high


def test_the_test_is_of_the_best_epoch_by_validation(job: MakeJob) -> None:
    run = train(job(train__epochs=4, optimizer__lr=0.3))
    result = run.result() or {}
    merits = [(float(row["val/acc1"]), -float(row["val/loss"])) for row in run.rows()]
    assert result["best_epoch"] == merits.index(max(merits)) + 1


def test_without_validation_the_last_epoch_is_the_best(job: MakeJob) -> None:
    run = train(job(data__val=0.0))
    assert (run.result() or {})["best_epoch"] == 3
    assert run.rows()[0]["val/acc1"] == ""


def test_a_network_learns_its_digits(job: MakeJob) -> None:
    result = train(job(data__limit=None, train__epochs=8, model__pool="max")).result() or {}
    assert result["test"]["acc1"] > 0.9


def test_labels_are_smoothed_and_gradients_clipped(job: MakeJob) -> None:
    plain, smooth = train(job()), train(job(train__label_smoothing=0.3))
    assert float(smooth.rows()[-1]["train/loss"]) > float(plain.rows()[-1]["train/loss"])
    clipped = train(job(train__clip_norm=1e-9, train__epochs=1, schedule="constant"))
    still = train(job(optimizer__lr=1e-12, train__epochs=1, schedule="constant"))
    moved = max(
        (weights(clipped)[k] - weights(still)[k]).abs().max().item() for k in weights(still)
    )
    assert moved < 1e-6


def test_losses_of_validation_and_test_are_plain_cross_entropy(job: MakeJob) -> None:
    run = train(job(train__label_smoothing=0.3))
    result = run.result() or {}
    for split, loss in (("val", result["best"]["val/loss"]), ("test", result["test"]["loss"])):
        plain = evaluate_run(run, split)[split]["loss"]
        assert loss == pytest.approx(plain, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_job_and_names_the_step(job: MakeJob) -> None:
    spec = job(optimizer__lr=1e30, schedule="constant")
    run = Run.create(spec)
    with pytest.raises(Diverged, match=r"step \d of epoch 1.*optimizer.lr"):
        train(spec, run)
    assert not list(run.checkpoints.glob("0*")), "a state that diverged is not kept"


def test_weights_ruined_by_the_last_update_of_an_epoch_are_not_kept(job: MakeJob) -> None:
    """Every loss was finite, for none was computed with them."""
    one_step = job(optimizer__lr=1e30, schedule="constant", train__batch_size=180, data__val=0.0)
    run = Run.create(one_step)
    with pytest.raises(Diverged):
        train(one_step, run)
    assert not list(run.checkpoints.glob("0*"))


def test_a_kill_between_a_checkpoint_and_its_index_loses_neither_last_nor_best(
    job: MakeJob,
) -> None:
    unbroken, broken = train(job()), train(job(train__epochs=2))
    index = broken.checkpoints / "index.json"
    index.write_text(json.dumps({"last": None, "previous": None, "best": None}))
    if not (broken.result() or {})["best_epoch"] == 2:
        pytest.fail("the second epoch should be the better one")
    whole = job(storage__every_steps=2)
    with pytest.raises(Interrupted):
        train(whole, broken, stop_at=3)
    assert (broken.weights("best").name, broken.rows()[1]["epoch"]) == ("00002-00000000", "2")
    assert len(unbroken.rows()) == 3


def test_what_cannot_change_in_a_run_is_refused(job: MakeJob) -> None:
    run = train(job())
    for key, change in {
        "name": {"name": "other"},
        "seed": {"seed": 3},
        "data": {"data.val": 0.2},
        "model": {"model.pool": "max"},
        "optimizer.name": {"optimizer": {"name": "adam", "lr": 0.05}},
        "train.batch_size": {"train.batch_size": 16},
        "train.balanced": {"train.balanced": True},
    }.items():
        with pytest.raises(SpecError) as refused:
            train(job(train__epochs=5, **change), run)
        assert refused.value.key == key
    train(job(train__epochs=4, data__cache="stream", data__max_bad=3), run)
    assert len(run.rows()) == 4


def test_changed_images_are_noticed_on_resume(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycnn.data.sources.digits import Digits

    run = train(job())
    read = Digits.read

    def darker(self: Digits) -> dict:
        splits = read(self)
        splits["train"].images[:] //= 2
        return splits

    monkeypatch.setattr(Digits, "read", darker)
    monkeypatch.setenv("RAYCNN_CACHE", str(run.folder / "another-cache"))
    with pytest.raises(DataError, match="not the ones the run was started with"):
        train(job(train__epochs=5), run)


def test_the_loop_runs_where_ray_cannot_be_imported(job: MakeJob, tmp_path: Path) -> None:
    spec = job(train__epochs=1)
    code = f"""
import sys
import time
sys.modules["ray"] = None  # importing it raises ImportError
from raycnn.cli import main
sys.argv = ["raycnn", "train", {str(Run.create(spec).folder / "job.yaml")!r}]
main()
assert not [name for name in sys.modules if name.startswith("torch._dynamo")], "slow to import"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "357 of 357 images" in done.stdout


def test_threads_do_not_change_what_is_drawn(job: MakeJob) -> None:
    """Sums may differ in their last digits, and nothing else."""
    one = train(job())
    torch.set_num_threads(2)
    two = train(job())
    torch.set_num_threads(1)
    assert max((weights(one)[k] - weights(two)[k]).abs().max().item() for k in weights(one)) < 1e-4


def test_the_time_of_waiting_for_images_is_apart_from_that_of_the_network(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Pipeline.__call__

    def slow(self: Pipeline, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001 * len(images))
        return prepare(self, images, numbers)

    monkeypatch.setattr(Pipeline, "__call__", slow)
    result = train(job(train__epochs=1)).result() or {}
    for split in ("train", "test"):
        assert 0 < result[split]["ms_per_image"] < 1 <= result[split]["data_ms_per_image"] < 3
