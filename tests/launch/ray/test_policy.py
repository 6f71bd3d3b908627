"""What a job does about its own failures, by their cause."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import raycnn.training.step
from raycnn.config.schema import JobSpec
from raycnn.errors import Diverged, EnvironmentUnavailable, Interrupted, WorkerLost
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import MicroBatchHalved, Resumed, RolledBack
from tests.support.processes import ended, workers
from tests.support.runs import distance, happened, numbers, same, train, weights

MakeJob = Callable[..., JobSpec]


def wild(job: MakeJob, **changes: object) -> JobSpec:
    """Finite in its first epoch, in the second not, unless the rate is smaller by then."""
    return job(
        optimizer__lr=2e-3, schedule={"name": "step", "milestones": [1 / 3], "gamma": 1e33},
        storage__every_steps=4, failure__rollback_lr=1e-33, **changes,
    )  # fmt: skip


def test_a_loss_that_is_not_finite_goes_back_with_a_smaller_rate(job: MakeJob) -> None:
    run = train(wild(job, failure__rollbacks=1))
    rates = [float(row["lr"]) for row in run.rows()]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3])
    assert [row["epoch"] for row in run.rows()] == ["1", "2", "3"]
    (back,) = happened(run, RolledBack)
    assert (back.rollback, back.rollbacks) == (1, 1)
    assert [(event.epoch, event.step) for event in happened(run, Resumed)] == [(1, 0)]
    assert math.isfinite(float(run.rows()[-1]["train/loss"]))


def test_it_goes_back_no_more_often_than_allowed(job: MakeJob) -> None:
    spec = wild(job, failure__rollbacks=2).change({"failure.rollback_lr": 0.9})
    run = Run.create(spec)
    with pytest.raises(Diverged):
        train(spec, run)
    assert len(happened(run, RolledBack)) == 2
    assert run.state() == "failed"
    path, _ = checkpoint_folder.latest_valid_checkpoint(run.checkpoints)
    assert path and path.name == "00001-00000000", "what it came from is kept"


def test_before_the_first_checkpoint_it_begins_anew(job: MakeJob) -> None:
    spec = job(
        optimizer__lr=1e30, schedule="constant", failure={"rollbacks": 1, "rollback_lr": 1e-32}
    )
    run = train(spec)
    gentle = train(job(optimizer__lr=1e30 * 1e-32, schedule="constant"))
    assert same(weights(run), weights(gentle))


@pytest.mark.parametrize("stop_at", [5, 11, 14])
def test_resume_is_exact_also_after_going_back(job: MakeJob, stop_at: int) -> None:
    """Stopped before it goes back, and after."""
    spec = wild(job, failure__rollbacks=1)
    unbroken, broken = train(spec), Run.create(spec)
    with pytest.raises(Interrupted):
        train(spec, broken, stop_at)
    train(spec, broken)
    assert same(weights(unbroken), weights(broken)) and numbers(unbroken) == numbers(broken)


def test_two_workers_go_back_together(job: MakeJob, tmp_path: Path) -> None:
    spec = wild(job, failure__rollbacks=1, workers__count=2)
    run = Run.create(spec)
    codes, said = ended(workers(2, run.folder, cwd=tmp_path, verb="resume"))
    assert codes == {0}, said
    assert distance(weights(run), weights(train(spec))) < 1e-4


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device, which is a fake, that from some step on has room for ten images only."""
    calls, forward = iter(range(10**6)), raycnn.training.step.forward

    def full(model: torch.nn.Module, batch: object, *rest: object) -> object:
        if next(calls) >= 8 and len(batch.images) > 10:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError
        return forward(model, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("raycnn.training.step.forward", full)


@pytest.mark.usefixtures("small_memory")
def test_memory_that_is_full_in_mid_run_halves_the_micro_batch(job: MakeJob) -> None:
    run = train(job())
    assert [event.size for event in happened(run, MicroBatchHalved)] == [16, 8]
    assert (1, 0) in [(event.epoch, event.step) for event in happened(run, Resumed)]
    assert len(run.rows()) == 3


@pytest.mark.usefixtures("small_memory")
def test_among_several_workers_the_smaller_micro_batch_is_kept_for_the_next_try(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait in the middle of a step, so all are started again."""
    spec = job()
    run = Run.create(spec)
    monkeypatch.setattr("raycnn.training.loop.distributed.world_size", lambda: 2)
    with pytest.raises(WorkerLost, match="rank 0 .*memory"):
        train(spec, run)
    assert run.job().train.micro_batch == 8


def test_one_image_that_is_too_much_ends_the_job(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*parts: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("raycnn.training.step.forward", full)
    with pytest.raises(EnvironmentUnavailable, match="one image is too much"):
        train(job())
