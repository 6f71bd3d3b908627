import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.load import load_job
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, SpecError
from raycnn.runs.directory import Run
from raycnn.runs.listing import summarize_runs
from raycnn.runs.metrics_file import COLUMNS
from raycnn.training.callbacks import EpochEnded, Evaluated, Warned
from tests.support.processes import Call, raycnn
from tests.support.runs import happened, same, train, weights

MakeJob = Callable[..., JobSpec]


def test_a_run_folder_holds_what_the_readme_says(job: MakeJob) -> None:
    run = train(job())
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert {
        "job.yaml",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "logs",
        "result.json",
    } <= names
    assert list(run.rows()[0]) == COLUMNS
    assert list((run.folder / "logs" / "tensorboard").glob("events.*"))
    assert [int(event.metrics["epoch"]) for event in happened(run, EpochEnded)] == [1, 2, 3]
    assert isinstance(run.last_event(), Evaluated)
    assert "process" in (run.folder / "logs" / "rank-0.log").read_text()
    environment = json.loads((run.folder / "environment.json").read_text())
    assert {"python", "packages", "cpus"} <= environment.keys()


def test_tensorboard_reads_the_events(job: MakeJob) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(job(storage__report=True))
    events = EventAccumulator(str(run.folder / "logs" / "tensorboard"))
    events.Reload()
    read = [event.value for event in events.Scalars("val/acc1")]
    assert read == pytest.approx([float(row["val/acc1"]) for row in run.rows()])
    tags = events.Tags()
    assert not {"epoch", "step"} & set(tags["scalars"]) and "test/acc1" in tags["scalars"]
    assert {"accuracy", "confusion"} <= set(tags["images"])
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_runs_are_numbered_and_never_overwritten(job: MakeJob) -> None:
    assert [Run.create(job()).folder.name for _ in range(3)] == ["1", "2", "3"]
    shutil.rmtree(Run.find("tiny/2", job().storage.path).folder)
    assert Run.create(job()).folder.name == "4"


def test_a_run_of_an_earlier_version_keeps_its_weight_decay(job: MakeJob) -> None:
    run = Run.create(job())
    path = run.folder / "job.yaml"
    assert (
        "decay_norm_and_bias: false" in path.read_text()
        and not run.job().optimizer.decay_norm_and_bias
    )
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "decay_norm" not in line))
    assert run.job().optimizer.decay_norm_and_bias
    assert not load_job(path).optimizer.decay_norm_and_bias  # as the spec of a new job


def test_a_run_is_found_by_folder_by_number_and_by_job(job: MakeJob) -> None:
    root = job().storage.path
    runs = [Run.create(job()) for _ in range(11)]
    assert Run.find(str(runs[2].folder)).folder == runs[2].folder
    assert Run.find("tiny/3", root).folder == runs[2].folder
    assert Run.find("tiny", root).folder == runs[10].folder
    with pytest.raises(SpecError, match="'tinny'.*'tiny'"):
        Run.find("tinny", root)


def test_an_event_after_one_that_was_cut_short_is_kept(job: MakeJob) -> None:
    run = Run.create(job())
    for text in ("one", "two"):
        run.add_event(Warned(text=text))
    events = run.folder / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])
    run.add_event(Warned(text="three"))
    assert [event.text for event in happened(run, Warned)] == ["one", "three"]


def test_a_run_can_be_moved_and_goes_on_there(job: MakeJob, tmp_path: Path) -> None:
    run = train(job(train__epochs=2))
    stayed = train(job(train__epochs=2))
    moved = Run(Path(shutil.move(run.folder, tmp_path / "elsewhere")))
    said = raycnn("eval", moved.folder, "--json", cwd=tmp_path)
    assert json.loads(said.stdout)["test"]["acc1"] == (moved.result() or {})["test"]["acc1"]
    for each in (stayed, moved):
        train(job(schedule="constant"), each)
    assert same(weights(stayed), weights(moved))
    texts = [path.read_bytes() for path in moved.folder.rglob("*") if path.is_file()]
    assert not any(str(run.folder).encode() in text for text in texts), "the old place is forgotten"


def test_a_folder_that_cannot_be_written_is_said(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnavailable, match="storage.path: cannot write"):
        Run.create(job(storage__path=str(tmp_path / "file")))


def test_a_run_resumes_where_it_is_and_not_where_it_was_created(
    job: MakeJob, call: Call, tmp_path: Path
) -> None:
    run = train(job(train__epochs=1))
    run.write_job(run.job().change({"storage.path": "nonsense://gone/runs"}))
    moved = run.folder.rename(tmp_path / "moved")
    code, _, err = call("resume", moved, "train.epochs=2")
    assert code == 0 and len(Run(moved).rows()) == 2, err


def test_a_damaged_run_is_listed_without_inventions_and_beside_the_others(
    job: MakeJob, tmp_path: Path
) -> None:
    run = train(job(train__epochs=1))
    damaged, odd = run.folder.with_name("2"), run.folder.with_name("²")  # a digit, but no number
    shutil.copytree(run.folder, damaged)
    shutil.copytree(run.folder, odd)
    (damaged / "job.yaml").write_text("")
    (damaged / "result.json").write_text('{"test": {}}')
    text = (damaged / "metrics.csv").read_text()
    (damaged / "metrics.csv").write_text(text + "2,12,2.9")
    first, second = summarize_runs(Run.all(str(run.folder.parents[1])))
    assert (first.name, second.name) == ("tiny/1", "tiny/2")
    assert first.test is not None and second.test is None
    assert second.changed == {} and second.epochs == 1
