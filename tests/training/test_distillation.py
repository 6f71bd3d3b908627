"""A job that learns the outputs of another run's network."""

import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch

from raycnn.analysis.predict import load_network
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.splits import open_splits
from raycnn.errors import DataError, Interrupted, SpecError
from raycnn.runs.compatibility import validate_resume
from raycnn.runs.directory import Run
from raycnn.runs.preflight import check_job
from raycnn.runs.teacher import load_job_teacher, teacher_digest
from raycnn.search.estimate import epoch_s
from raycnn.search.folder import Search
from raycnn.search.preflight import check_search
from raycnn.training import autotune
from raycnn.training.callbacks import Autotuned, TeacherLoaded
from raycnn.training.distillation import Teacher, soft_loss
from tests.support.jobs import TINY
from tests.support.processes import Call
from tests.support.runs import distance, happened, numbers, same, train, weights
from tests.support.searches import Read, begin, go

MakeJob = Callable[..., JobSpec]

SLOW_S = 0.05  # seconds by which a teacher is slowed down: far more than a step takes
MIXED = [{"name": "resize", "size": 12}, {"name": "random_crop", "padding": 2}, "mixup"]
FLAT = {"label_smoothing": 0.1, "epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that knows something: one that has just begun is almost indifferent."""
    changes = {
        "name": "teacher", "train.epochs": 8, "data.limit": 600, "optimizer.lr": 0.2,
        "storage.path": str(tmp_path_factory.mktemp("teacher")),
    }  # fmt: skip
    run = train(job_from_tree(TINY).change(changes))
    assert (run.result() or {})["test"]["acc1"] > 0.6
    return run


@pytest.fixture
def teacher(trained: Run, tmp_path: Path) -> Run:
    """A copy among the runs of the test."""
    return Run(Path(copytree(trained.folder, tmp_path / "runs" / "teacher" / "1")))


def taught(teacher: Run, **changes: object) -> dict[str, object]:
    return {"teacher": str(teacher.folder), **changes}


def first_loss(run: Run) -> float:
    return float(run.rows()[0]["train/loss"])


def test_the_soft_loss_is_that_of_the_paper() -> None:
    logits, theirs = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (torch.softmax(one / 3, 1) for one in (theirs, logits))
    assert soft_loss(logits, theirs, 3).item() == pytest.approx(
        9 * (p * (p / q).log()).sum().item(), rel=1e-4
    )


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_student_that_equals_its_teacher_has_the_hard_loss_and_its_gradient_left(
    job: MakeJob, teacher: Run, alpha: float
) -> None:
    """Both see the same augmented and mixed images; the hard loss counts 1 - alpha."""
    model = {"name": "lenet", "activation": "relu", "weights": str(teacher.folder)}
    changes = {
        "model": model, "data.transforms": MIXED, "schedule": "constant",
        "train": FLAT | {"batch_size": 600},  # one step
        "data.limit": 600,  # as its teacher's: from these the normalization is computed
    }  # fmt: skip
    hard = train(job(**changes))
    both = train(job(**changes, train__distillation=taught(teacher, alpha=alpha)))
    assert first_loss(both) == pytest.approx((1 - alpha) * first_loss(hard), abs=1e-5)
    begun, after_hard, after_both = (weights(run, "best") for run in (teacher, hard, both))
    for name, before in begun.items():
        step = after_hard[name] - before
        assert step.abs().max() > 1e-4
        assert torch.allclose(after_both[name] - before, (1 - alpha) * step, atol=2e-6)


def test_a_student_learns_its_teacher_without_labels(job: MakeJob, teacher: Run) -> None:
    longer = {"epochs": 8, "batch_size": 32, "distillation": taught(teacher, alpha=1)}
    student = train(job(train=longer, optimizer={"name": "adamw", "lr": 5e-3}, data__limit=600))
    losses = [float(row["train/loss"]) for row in student.rows()]
    assert losses[-1] < losses[0] / 2


def test_the_teacher_gets_images_as_it_was_trained_on_them(job: MakeJob, teacher: Run) -> None:
    """The student has another normalization and another size; it is converted on the device."""
    spec = job(
        data__normalize={"mean": [0.5], "std": [0.25]},
        data__transforms=[{"name": "resize", "size": 16}],
        train__distillation=taught(teacher),
    )
    splits, cpu = open_splits(spec), torch.device("cpu")
    found = load_job_teacher(spec, splits, cpu)
    pixels = torch.full((3, 1, 16, 16), 0.5).add_(torch.tensor([0.1, 0, -0.3]).view(3, 1, 1, 1))
    network = load_network(teacher.weights("best"), cpu)
    mean, std = network.pipeline.mean[0], network.pipeline.std[0]
    with torch.no_grad():
        expected = network.module((pixels[:, :, :12, :12] - mean) / std)
    assert found and torch.allclose(found((pixels - 0.5) / 0.25), expected, atol=1e-4)
    assert found.loaded.size == [12, 12]


def test_a_resumed_student_equals_an_unbroken_one(job: MakeJob, teacher: Run) -> None:
    spec = job(train__distillation=taught(teacher), train__micro_batch=20, train__precision="bf16")
    unbroken, broken = train(spec), Run.create(spec)
    with pytest.raises(Interrupted):
        train(spec, broken, stop_at=8)
    assert validate_resume(broken, spec) == 1
    train(spec, broken)
    assert same(weights(unbroken), weights(broken)) and numbers(unbroken) == numbers(broken)
    assert len(happened(broken, TeacherLoaded)) == 2


def test_micro_batches_do_not_change_what_is_learned(job: MakeJob, teacher: Run) -> None:
    whole = job(train__distillation=taught(teacher), train__epochs=1)
    parts = train(whole.change({"train.micro_batch": 7}))
    assert distance(weights(train(whole)), weights(parts)) < 1e-5


def test_a_teacher_that_was_trained_further_is_refused_on_resume(
    job: MakeJob, teacher: Run
) -> None:
    spec = job(train__distillation=taught(teacher))
    run = Run.create(spec)
    with pytest.raises(Interrupted):
        train(spec, run, stop_at=8)
    before = weights(teacher, "best")
    train(teacher.job().change({"train.epochs": 14}), teacher)
    assert not same(weights(teacher, "best"), before)
    with pytest.raises(DataError, match="train.distillation.teacher: "):
        validate_resume(run, spec)
    with pytest.raises(DataError, match="train.distillation.teacher: "):
        train(spec, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "synthetic", "channels": 1, "classes": 3}}, "3, 4, 5"),
        ({"data": {"name": "synthetic", "channels": 3, "classes": 10}}, "1 channels"),
        ({"train.distillation.teacher": "teacer"}, "did you mean 'teacher'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(
    job: MakeJob, teacher: Run, changes: dict[str, object], message: str
) -> None:
    spec = job(train__distillation=taught(teacher)).change(changes)
    with pytest.raises(SpecError, match="train.distillation.teacher: ") as error:
        check_job(spec)
    assert message in str(error.value)


def test_the_name_of_a_job_is_its_latest_run_when_training_begins(
    call: Call, job: MakeJob, teacher: Run, tmp_path: Path
) -> None:
    student = Run.create(job()).folder / "job.yaml"
    code, said, error = call(
        "train", student, "train.epochs=1", "train.distillation.teacher=teacher"
    )
    assert code == 0, error
    found = Run.find("tiny", str(tmp_path / "runs")).job().train.distillation
    assert found and found.teacher == str(teacher.folder)


def test_the_trials_of_a_search_learn_from_the_run_that_was_the_latest_when_it_began(
    read: Read, teacher: Run, tmp_path: Path
) -> None:
    spec = read()
    (only,) = spec.architectures
    named = only.job.change({"train.distillation": {"teacher": "teacher"}})
    spec = spec.model_copy(update={"architectures": [only.model_copy(update={"job": named})]})
    search = Search.create(check_search(spec))
    copytree(teacher.folder, tmp_path / "runs" / "teacher" / "2")
    (trial,) = begin(search, [0.05])
    go(search, trial)
    (loaded,) = happened(trial.run, TeacherLoaded)
    assert loaded.teacher == str(teacher.folder)
    assert loaded.sha256 == teacher_digest(trial.run.job())
    assert trial.info["state"] == "done"


def slow_down_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each forward pass of a teacher take SLOW_S seconds longer."""
    original = Teacher.__call__

    def slow(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        time.sleep(SLOW_S)
        return original(self, images)

    monkeypatch.setattr(Teacher, "__call__", slow)


def test_settings_are_measured_with_the_teacher_whose_weights_take_the_layout(
    job: MakeJob, teacher: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(autotune, "MIN_TRAINING_S", 0)
    monkeypatch.setattr(autotune, "MEASURED_S", 0.01)
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))
    alone = train(job(train__channels_last="auto"))
    slow_down_teachers(monkeypatch)
    both = train(job(train__channels_last="auto", train__distillation=taught(teacher)))
    seconds, seconds_alone = (
        list(happened(run, Autotuned)[0].seconds.values()) for run in (both, alone)
    )
    assert len(seconds) == 2 and min(seconds) > SLOW_S > max(seconds_alone)
    settings = {"train__channels_last": both.job().train.channels_last}
    same_job = train(job(**settings, train__distillation=taught(teacher)))
    assert same(weights(both), weights(same_job))


def test_the_estimate_of_a_search_counts_the_teacher(
    read: Read, teacher: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, cpu = read(), torch.device("cpu")
    (only,) = spec.architectures
    learning = only.job.change({"train.distillation": taught(teacher)})
    slow_down_teachers(monkeypatch)
    alone, both = (
        epoch_s(spec.map_jobs(change), cpu)[only.name]
        for change in (lambda job: job, lambda job: learning)
    )
    steps = 180 / 32  # of an epoch: 200 images, of which a tenth is held out
    assert both > steps * SLOW_S > alone
