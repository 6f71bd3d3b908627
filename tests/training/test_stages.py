"""Settings that change in mid-run: where they apply, and that resuming is still exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycnn.config.load import load_job
from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted, SpecError
from raycnn.runs.directory import Run
from raycnn.runs.preflight import resolve_job
from tests.support.processes import Call
from tests.support.runs import numbers, same, train, weights

MakeJob = Callable[..., JobSpec]


def stage(epoch: int, **changes: Any) -> dict[str, Any]:
    return {"epoch": epoch, "changes": {k.replace("__", "."): v for k, v in changes.items()}}


STAGED = [
    stage(1, optimizer__lr=0.02, train__label_smoothing=0.2),
    stage(2, optimizer__momentum=0.5, train__clip_norm=0.1),
]


def test_stages_equal_to_the_base_change_nothing(job: MakeJob) -> None:
    plain = train(job())
    staged = train(job(stages=[stage(1, optimizer__lr=0.05, optimizer__momentum=0.9)]))
    assert same(weights(plain), weights(staged)) and numbers(plain) == numbers(staged)


def test_a_stage_begins_once_so_many_epochs_are_done(job: MakeJob) -> None:
    plain = train(job(schedule="constant"))
    staged = train(job(schedule="constant", stages=[stage(2, optimizer__lr=0.001)]))
    assert [float(row["lr"]) for row in staged.rows()] == [0.05, 0.05, 0.001]
    assert numbers(plain)[:2] == numbers(staged)[:2]
    assert not same(weights(plain), weights(staged))


@pytest.mark.parametrize(
    "change",
    [{"optimizer__momentum": 0.0}, {"train__label_smoothing": 0.3}, {"train__clip_norm": 1e-3}],
)
def test_whatever_a_stage_says_is_trained_with(job: MakeJob, change: dict[str, float]) -> None:
    plain, staged = train(job()), train(job(stages=[stage(1, **change)]))
    one, other = numbers(plain), numbers(staged)
    assert one[0] == other[0] and one[1] != other[1]
    assert not same(weights(plain), weights(staged))


def test_validation_losses_of_stages_with_different_smoothing_can_be_compared(job: MakeJob) -> None:
    smoothed = [stage(1, train__label_smoothing=0.5)]
    rows = train(job(optimizer__lr=1e-12, schedule="constant", stages=smoothed)).rows()
    trained, validated = (
        [float(row[f"{split}/loss"]) for row in rows] for split in ("train", "val")
    )
    assert trained[1] != pytest.approx(trained[0], rel=1e-5)
    assert validated == pytest.approx([validated[0]] * 3, rel=1e-6), "the weights stay as they are"


def test_stages_build_on_one_another(job: MakeJob) -> None:
    staged = job(stages=STAGED)
    assert staged.after(0) == staged
    assert [staged.after(n).optimizer.options["lr"] for n in range(3)] == [0.05, 0.02, 0.02]
    assert [staged.after(n).train.clip_norm for n in range(3)] == [None, None, 0.1]


def test_schedules_are_factors_of_the_stages_own_rate(job: MakeJob) -> None:
    plain, staged = train(job()), train(job(stages=[stage(1, optimizer__lr=0.1)]))
    factors = [
        float(s["lr"]) / float(p["lr"]) for s, p in zip(staged.rows(), plain.rows(), strict=True)
    ]
    assert factors == pytest.approx([1, 2, 2])


@pytest.mark.parametrize(
    ("optimizer", "stages"),
    [
        ({"name": "sgd", "momentum": 0.9}, STAGED),
        ({"name": "adamw"}, [stage(1, optimizer__betas=[0.5, 0.999]), STAGED[0] | {"epoch": 2}]),
        ({"name": "rmsprop"}, [stage(1, optimizer__momentum=0.9, optimizer__centered=True)]),
    ],
    ids=["sgd", "adamw", "rmsprop, which has more state from then on"],
)
def test_a_run_resumed_inside_a_stage_equals_the_unbroken_one(
    job: MakeJob, optimizer: dict[str, Any], stages: list[dict[str, Any]]
) -> None:
    """180 images are trained on in 6 steps an epoch: stages begin at steps 6 and 12."""
    staged = job(optimizer={"lr": 0.01, **optimizer}, stages=stages)
    unbroken, broken = train(staged), Run.create(staged)
    for stop_at in (6, 3, 4, 1):  # as a stage begins, and in the middle of it
        with pytest.raises(Interrupted):
            train(staged, broken, stop_at)
    train(staged, broken)
    assert same(weights(unbroken), weights(broken)) and numbers(unbroken) == numbers(broken)


def test_only_stages_that_have_not_begun_may_change_on_resume(job: MakeJob) -> None:
    run = train(job(train__epochs=2, stages=[stage(1, optimizer__lr=0.02)]))
    for stages in ([], [stage(1, optimizer__lr=0.03)]):
        with pytest.raises(SpecError, match="^stages: "):
            train(job(stages=stages), run)
    train(job(stages=[stage(1, optimizer__lr=0.02), stage(2, optimizer__lr=0.3)]), run)
    assert len(run.rows()) == 3


TEXT = """\
name: tiny
data: {name: digits, transforms: [{name: resize, size: 12}]}
model: lenet
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 3, batch_size: 32}
"""


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{epoch: 1, changes: {model.dropout: 0.1}}]", ":6: stages.0.changes: model.dropout cannot change during a run: options of the optimizer, train.label_smoothing and train.clip_norm can"),
        ("[{epoch: 1, changes: {optimizer.name: adam}}]", "optimizer.name cannot change during a run"),
        ("[{epoch: 1, changes: {optimizer: adam}}]", "optimizer cannot change during a run"),
        ("[{epoch: 1, changes: {train.batch_size: 8}}]", "train.batch_size cannot change during a run"),
        ("[{epoch: 1, changes: {}}]", ":6: stages.0.changes: "),
        ("[{epoch: 0, changes: {optimizer.lr: 1}}]", ":6: stages.0.epoch: must be greater than 0"),
        ("[{epoch: 3, changes: {optimizer.lr: 1}}]", "stages: begin after [3] epochs: each must begin later than the one before, and before train.epochs 3"),
        ("[{epoch: 2, changes: {optimizer.lr: 1}}, {epoch: 1, changes: {optimizer.lr: 1}}]", "stages: begin after [2, 1] epochs"),
        ("[{epoch: 1, change: {optimizer.lr: 1}}]", "unknown key 'change'; did you mean 'changes'?"),
        ("[{epoch: 1, changes: {optimizer.lr: 0}}]", ":6: stages.0.changes: optimizer.lr: must be greater than 0"),
        ("[{epoch: 1, changes: {optimizer.lrr: 1}}]", "unknown sgd option 'lrr'; did you mean 'lr'?"),
        ("[{epoch: 1, changes: {optimizer.nesterov: true}}]", ":6: stages.0.changes: optimizer.nesterov: nesterov needs a momentum"),
        ("[{epoch: 1, changes: {train.label_smoothing: 1.5}}]", ":6: stages.0.changes: train.label_smoothing: must be less than 1"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_is_refused_with_its_line(
    tmp_path: Path, stages: str, said: str
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{TEXT}stages: {stages}\n")
    with pytest.raises(SpecError) as caught:
        resolve_job(load_job(path))
    assert said in str(caught.value)


def test_a_stage_or_a_resume_may_switch_a_momentum_on(job: MakeJob, call: Call) -> None:
    rmsprop = {"name": "rmsprop", "lr": 1e-3}
    staged = train(job(optimizer=rmsprop, stages=[stage(1, optimizer__momentum=0.5)]))
    assert len(staged.rows()) == 3
    run = train(job(optimizer=rmsprop, train__epochs=1))
    code, _, err = call("resume", run.folder, "train.epochs=2", "optimizer.momentum=0.5")
    assert code == 0 and len(run.rows()) == 2, err
