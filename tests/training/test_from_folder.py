"""From a folder of pictures to a job, without a line of YAML."""

from pathlib import Path

import pytest
from PIL import Image

from raycnn.config.load import load_job
from raycnn.errors import DataError, SpecError
from raycnn.runs.directory import Run
from raycnn.runs.preflight import resolve_job
from raycnn.training.from_folder import job_for_folder
from tests.support.images import write_pictures
from tests.support.processes import Call


@pytest.mark.parametrize(
    ("size", "seen"),
    [((28, 28), (28, 28)), ((40, 30), (30, 40)), ((150, 90), (80, 80)), ((640, 480), (224, 224))],
)
def test_images_are_as_large_as_the_pictures_allow(
    tmp_path: Path, size: tuple[int, int], seen: tuple[int, int]
) -> None:
    """`size` is (width, height), `seen` is (height, width)."""
    made = job_for_folder(write_pictures(tmp_path / "pics", ["a", "b"], 3, size))
    shape = resolve_job(made.job).shape
    assert shape[1:] == seen


def test_gray_pictures_stay_gray(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (20, 20)).save(tmp_path / name / "1.png")
    assert job_for_folder(tmp_path).job.data.options["mode"] == "gray"


def test_a_typed_path_with_dots_is_followed(tmp_path: Path) -> None:
    top = write_pictures(tmp_path / "pics", ["a", "b"], 3, (20, 20))
    assert job_for_folder(top / ".." / "pics").job.data.root == str(top)


def test_what_is_asked_for_stands_above_what_was_found(tmp_path: Path) -> None:
    top = write_pictures(tmp_path / "My Pictures (2)", ["a", "b"], 3, (300, 300))
    made = job_for_folder(
        top, ["data.size=96", "model=lenet", "train.epochs=5", "optimizer.lr=0.01"]
    )
    assert made.job.name == "my-pictures-2"
    assert resolve_job(made.job).shape[1:] == (96, 96)
    assert made.job.model.name == "lenet" and made.job.train.epochs == 5
    assert made.job.optimizer.options == {"lr": 0.01, "weight_decay": 0.05}
    with pytest.raises(SpecError, match="epochs"):
        job_for_folder(top, ["train.epoch=5"])


def test_the_spec_it_writes_is_the_job(tmp_path: Path) -> None:
    made = job_for_folder(write_pictures(tmp_path / "größe: 1 #x", ["a", "b"], 3))
    (tmp_path / "job.yaml").write_text(made.text(), encoding="utf-8")
    assert load_job(tmp_path / "job.yaml").tree() == made.job.tree()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        job_for_folder(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.jpg").write_text("<html>")
    with pytest.raises(DataError):
        job_for_folder(tmp_path)


def test_a_folder_is_trained_by_one_command(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "home" / "pics", ["a", "b"], 10, (16, 16))
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    code, out, err = call(
        "train",
        "~/pics",
        "model=lenet",
        "train.epochs=2",
        "storage.path=../runs",
        "workers.device=cpu",
    )
    assert code == 0, err
    run = Run.find("pics", str(tmp_path / "runs"))
    assert run.result()["epochs"] == 2
    spec = run.folder / "pics.yaml"
    assert str(spec) in out and load_job(spec).data == run.job().data
    code, _, err = call("train", run.folder)
    assert code == 2 and "resume" in err


def test_init_writes_a_spec_and_nothing_over_one(tmp_path: Path, call: Call) -> None:
    write_pictures(tmp_path / "pics", ["a", "b"], 3)
    code, out, _ = call("init", "pics", "train.epochs=3")
    assert code == 0 and "job.yaml" in out
    assert load_job(tmp_path / "job.yaml").train.epochs == 3
    before = (tmp_path / "job.yaml").read_text()
    assert "#" in before
    code, _, err = call("init", "pics")
    assert code == 2 and "job.yaml" in err and (tmp_path / "job.yaml").read_text() == before


def test_a_job_named_job_leaves_the_runs_own_spec_alone(tmp_path: Path) -> None:
    made = job_for_folder(write_pictures(tmp_path / "pics", ["a", "b"], 3), ["name=job"])
    assert made.write(tmp_path).name == "job-spec.yaml"
