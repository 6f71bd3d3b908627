"""`raycnn verify`, as a person calls it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.analysis import verify_resume
from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec
from raycnn.errors import JobFailed, SpecError
from raycnn.training import checkpoint_folder
from tests.support.processes import raycnn
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]


@pytest.mark.slow
def test_a_job_is_verified_and_damaged_checkpoints_of_its_run_are_not(
    job: MakeJob, tmp_path: Path
) -> None:
    run = train(job())
    model = run.weights("last") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    done = raycnn("verify", run.folder, "--json", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    damaged, killed, metrics, counted, other, counted_too = report["findings"]
    assert report["passed"] is damaged["passed"] is False and "model.safetensors" in damaged["text"]
    assert "killed (SIGKILL) after" in killed["text"] and "bit for bit" in killed["text"]
    assert "2 workers instead: weights within" in other["text"]
    assert all(finding["passed"] for finding in (killed, metrics, counted, other, counted_too))
    assert report["environment"]["packages"]["torch"]
    assert sorted(path.name for path in Path(job().storage.path).glob("*/*")) == ["1"]


@pytest.mark.slow
def test_a_job_is_verified_with_the_teacher_that_it_names(job: MakeJob, tmp_path: Path) -> None:
    train(job(train__epochs=1))
    teacher = {"teacher": "tiny"}  # and a tracker that is not installed, nor needed
    student = job(name="student", train__distillation=teacher, trackers=["wandb"])
    yaml_file.write(tmp_path / "student.yaml", student.tree())
    done = raycnn("verify", tmp_path / "student.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "equal bit for bit" in done.stdout


def test_what_differs_is_found_and_by_how_much(job: MakeJob) -> None:
    one, other = train(job(train__epochs=1)), train(job(train__epochs=1, optimizer__lr=0.04))
    weights, metrics = verify_resume._check_equal(one, other, "killed")
    assert not weights.passed and "tensors differ from the uninterrupted run, by" in weights.text
    assert not metrics.passed
    assert not verify_resume._check_close(one, other, one.job()).passed


def test_an_image_seen_twice_is_found(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that says so is made up: its checksum would not let it be written by hand."""
    run = train(job(train__epochs=1, storage__every_steps=4))
    counted = verify_resume._check_image_count(run)
    assert counted.passed and "128 of 128 images in 4 steps of epoch 1" in counted.text
    state = checkpoint_folder.read_state(run.checkpoints / "00000-00000004")
    state["seen"]["count"] += 1
    monkeypatch.setattr(checkpoint_folder, "read_state", lambda path: state)
    counted = verify_resume._check_image_count(run)
    assert not counted.passed and "129 of 128 images" in counted.text


def test_a_job_that_cannot_be_shortened_or_trained_says_so(job: MakeJob) -> None:
    with pytest.raises(SpecError, match="train.batch_size: "):
        verify_resume.verify_resume(job(train__batch_size=200), None, str)
    with pytest.raises(JobFailed, match="not finite"):
        verify_resume.verify_resume(job(optimizer__lr=1e30, schedule="constant"), None, str)
