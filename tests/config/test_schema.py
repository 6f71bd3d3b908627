import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from raycnn.config.load import job_from_tree, load_job
from raycnn.config.schema import json_schema
from raycnn.errors import SpecError
from tests.support.jobs import TINY

GOOD = """\
name: good
data: {name: digits, limit: 100}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 1e-3}
train:
  epochs: 3
  batch_size: 32
"""


def write(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *changes: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_job(write(folder, text), changes)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD + "schedule: {name: on, milestones: [0o10, 1_000]}\n"))
    assert job.optimizer.options == {"lr": 0.001}
    assert job.schedule.name == "on"
    assert job.schedule.options == {"milestones": [8, 1000]}


def test_a_spec_is_frozen_and_survives_printing(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        job.seed = 1  # type: ignore[misc]
    assert job_from_tree(job.tree()).tree() == job.tree()


def test_every_field_is_documented() -> None:
    drawn = json_schema()
    for section in [drawn, *drawn["$defs"].values()]:
        for name, field in section["properties"].items():
            obvious = name in {"name", "epochs", "batch_size"} or "$ref" in field
            assert obvious or field.get("description"), f"{section['title']}.{name}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: a job is a mapping of keys to values; this file is empty"),
        ("- name: a\n", ":1: a job is a mapping of keys to values; this file is a list"),
        ("name: a\n\tseed: 1\n", ":2:1: not YAML"),
        ("name: 'a\n", ":2:1: not YAML"),
        ("name: a\nname: b\n", ':2:1: not YAML: found duplicate key "name"'),
        ("name: !!python/object/apply:os.system [id]\n", ":1:7: not YAML"),
        ("name: &x a\nseed: *x\n", ":2: aliases are not used in a spec"),
        ("a: 1\n---\nb: 2\n", ":2:1: not YAML"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.lerning_rate=1", "command line: train.lerning_rate: unknown key 'lerning_rate'"),
        ("train.epoch=1", "did you mean 'epochs'?"),
        ("train.epochs=ten", "train.epochs: must be a valid integer, not 'ten'"),
        ("train.epochs=0", "train.epochs: must be greater than 0, not 0"),
        ("train.epochs=-1", "train.epochs: must be greater than 0, not -1"),
        ("train.epochs=.nan", "train.epochs: must be a valid integer"),
        ("train.epochs=true", "train.epochs: must be a valid integer, not True"),
        ("train.batch_size=0", "train.batch_size: must be greater than 0"),
        ("train.label_smoothing=1", "train.label_smoothing: must be less than 1"),
        ("train.clip_norm=.inf", "train.clip_norm: must be a finite number"),
        ("data.val=1", "data.val: must be less than 1"),
        ("workers.launcher=off", "workers.launcher: must be 'auto', 'ray' or 'local', not 'off'"),
        ("workers.count=33", "train.batch_size 32 is less than the number of workers, 33"),
        ("workers.count=[1, 33]", "train.batch_size 32 is less than the number of workers, 33"),
        ("workers.count=[3, 2]", "workers.count: must be a number of workers, or the least and the most: [2, 4], not [3, 2]"),
        ("workers.count=[2]", "workers.count: must be a number of workers, or the least"),
        ("workers.count=0", "workers.count: must be a number of workers, or the least"),
        ("workers.count=two", "workers.count: must be a number of workers, or the least"),
        ("seed=-1", "seed: must be greater than or equal to 0"),
        ("model=[lenet]", "model: must be a name, or a mapping"),
        ("name=../../etc", "name: must be at most 64 of a-z, 0-9"),
        ("name=a b", "name: must be at most 64 of a-z, 0-9"),
        ("name='a\n'", "name: must be at most 64 of a-z, 0-9"),
        ("name=a;rm", "name: must be at most 64 of a-z, 0-9"),
        ("storage.path=s3://key:secret@bucket/runs", "storage.path: has credentials"),
        ("storage.path=s3://bucket/runs?secret_key=hidden", "storage.path: has a credential"),
        ("storage.path=s3://bucket/../runs", "storage.path: is not a plain URI"),
        ("data.root=s3://bucket/data", "data.root: is a URI"),
        ("data.normalize={mean: [0], std: [0]}", "data.normalize.std.0: must be greater than 0"),
        ("nonsense", "'nonsense' is not a change: write key=value"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, change: str, said: str) -> None:
    assert said in refusal(tmp_path, GOOD, change)


def test_an_error_names_the_line_of_the_file(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace("epochs: 3", "epochs: three"))
    assert said == f"{tmp_path}/job.yaml:6: train.epochs: must be a valid integer, not 'three'"


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace("epochs: 3", "epochs: 0").replace("32", "0"))
    assert len(said.splitlines()) == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "model: is missing" in refusal(tmp_path, GOOD.replace("model", "# "))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    assert "bytes" in refusal(tmp_path, GOOD + "#" * 2_000_000)


@pytest.mark.parametrize("path", ["../elsewhere", "~/x", "a/../../b"])
def test_a_path_that_leaves_its_folder_is_refused_in_a_file_and_followed_when_typed(
    tmp_path: Path, path: str
) -> None:
    assert "storage.path: is not a plain path" in refusal(
        tmp_path, f"{GOOD}storage: {{path: {path}}}\n"
    )
    typed = load_job(write(tmp_path, GOOD), [f"storage.path={path}"]).storage.path
    assert typed == os.path.abspath(Path(path).expanduser())


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere.yaml"):
        load_job(tmp_path / "nowhere.yaml")
    path = write(tmp_path, GOOD)
    with pytest.raises(SpecError, match=f"'{path.name}'"):
        load_job(path.with_name(path.name.removesuffix("ml")))


def test_changes_reach_into_the_spec(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    job = load_job(path, ["optimizer.lr=0.2", "train.epochs=5", "workers.count=2"])
    assert (job.optimizer.options["lr"], job.train.epochs, job.workers.count) == (0.2, 5, 2)
    assert job.change({"optimizer.lr": 0.3}).optimizer.options == {"lr": 0.3}


def test_another_name_takes_no_options_over(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD), ["model=alexnet", "optimizer={name: adam, lr: 0.1}"])
    assert job.model.options == {} and job.optimizer.options == {"lr": 0.1}


def test_a_job_extends_another_and_its_keys_win(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base/good.yaml")
    path = write(tmp_path, "extends: base/good.yaml\nname: better\ntrain: {epochs: 9}\n")
    job = load_job(path)
    assert (job.name, job.train.epochs, job.train.batch_size) == ("better", 9, 32)


def test_an_error_in_what_is_extended_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("epochs: 3", "epochs: 0"), "base.yaml")
    assert f"{tmp_path}/base.yaml:6: train.epochs" in refusal(tmp_path, "extends: base.yaml\n")


@pytest.mark.parametrize(
    "target", ["../secret.yaml", "/etc/passwd", "nowhere.yaml", "link.yaml", "1"]
)
def test_a_job_extends_nothing_outside_its_folder(tmp_path: Path, target: str) -> None:
    write(tmp_path, GOOD, "secret.yaml")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    assert "extends: " in refusal(tmp_path / "jobs", f"extends: {target}\n")


def test_changes_of_a_component_that_is_left_out_are_changes_of_the_default_one() -> None:
    tree = {key: TINY[key] for key in ("name", "data", "model", "train")}
    job = job_from_tree(tree)
    assert job.optimizer.name == "adamw" and job.schedule.name == "constant"
    changed = job_from_tree(tree | {"optimizer": {"lr": 0.1}, "schedule": {"warmup": 0.1}})
    assert changed.tree() == job.change({"optimizer.lr": 0.1, "schedule.warmup": 0.1}).tree()
    assert changed.optimizer.options == {"lr": 0.1}
    decayed = job_from_tree(tree | {"optimizer": {"weight_decay": 0.3}})
    again = decayed.change({"optimizer": {"name": "adamw", "lr": 0.01}})
    assert again.optimizer.options == {"lr": 0.01, "weight_decay": 0.3}


def test_a_spec_extends_one_that_leaves_the_name_of_the_optimizer_out(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\ndata: digits\nmodel: lenet\noptimizer: {weight_decay: 0.3}\n"
        "train: {epochs: 1}\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\noptimizer: {name: adamw, lr: 0.01}\n")
    options = load_job(tmp_path / "mine.yaml").optimizer.options
    assert options == {"lr": 0.01, "weight_decay": 0.3}
    options = load_job(tmp_path / "base.yaml", ["optimizer.name=adamw"]).optimizer.options
    assert options == {"lr": 1e-3, "weight_decay": 0.3}


def test_a_job_extends_a_recipe_by_name(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "extends: quickstart\nname: mine\n"))
    assert (job.name, job.model.name) == ("mine", load_job(Path("quickstart")).model.name)
    assert "did you mean 'quickstart'" in refusal(tmp_path, "extends: quickstrat\n")


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert "in a circle" in refusal(tmp_path, "extends: a.yaml\n")
