"""The command line, in this process: every message and exit code a person meets."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest

from raycnn.cli.arguments import is_job
from raycnn.cli.commands import COMMANDS
from raycnn.config.recipes import recipe_files
from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import load_yaml, write
from raycnn.runs.directory import Run
from raycnn.training import checkpoint
from tests.support.images import write_pictures
from tests.support.jobs import JOBS, ROOT
from tests.support.processes import Call
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]


QUICK = ROOT / "jobs" / "quickstart.yaml"
HERE = ("workers.count=1", "train.epochs=1")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("model=lenett", 2, "model.name: unknown model 'lenett'; did you mean 'lenet'? (models: alexnet"),
        ("model.activaton=relu", 2, "model.activaton: unknown lenet option 'activaton'; did you mean"),
        ("data=mnits", 2, "data.name: unknown dataset 'mnits'; did you mean 'mnist'?"),
        ("data.sise=3", 2, "data.sise: unknown digits option 'sise'"),
        ("optimizer=sdg", 2, "optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'?"),
        ("optimizer.lr=0", 2, "optimizer.lr: must be greater than 0"),
        ("optimizer.lr=-1", 2, "optimizer.lr: must be greater than 0"),
        ("optimizer.lr=.nan", 2, "optimizer.lr: must be"),
        ("optimizer.lr=.inf", 2, "optimizer.lr: must be"),
        ("optimizer.lr=fast", 2, "optimizer.lr: must be a valid number, not 'fast'"),
        ("optimizer.momentum=1", 2, "optimizer.momentum: must be less than 1"),
        ("schedule=cosin", 2, "schedule.name: unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("data.transforms=[horizontal_flipp]", 2, "unknown transform 'horizontal_flipp'; did you mean 'horizontal_flip'?"),
        ("data.transforms=[]", 2, "lenet needs images of at least 12x12, not 8x8"),
        ("data.normalize={mean: [0, 0, 0], std: [1, 1, 1]}", 2, "data.normalize.mean"),
        ("data=mnist", 4, "mnist is not in"),
        ("workers.device=cuda", 3, "workers.device: cuda: this machine has none"),
        ("workers.device=npu", 3, "workers.device: npu: torch_npu is not installed"),
        ("storage.path=file/runs", 3, "storage.path: "),
        ("workers.count=99", 2, "is less than the number of workers, 99"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_job_that_cannot_work_is_refused_before_it_starts(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    change: str,
    code: int,
    said: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYCNN_DATA", str(tmp_path / "no-data"))
    ended, out, err = call(verb, QUICK, "workers.count=1", change, *(["train.batch_size=64"]))
    assert ended == code and said in err, (ended, err)
    assert err.startswith("raycnn: ") and "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "nothing is half-begun"


def test_a_recipe_is_inspected_by_its_name(call: Call) -> None:
    for verb, key in (("summary", "layers"), ("data", "counts")):
        ended, out, err = call(verb, "quickstart", "--json")
        assert ended == 0 and json.loads(out)[key], err
    assert is_job("quickstart") and not is_job("lenet") and not is_job("quickstart/1")


def test_a_data_root_that_is_a_file_or_forbidden_is_bad_data(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended, _, err = call("train", QUICK, "workers.count=1", "data={name: mnist, root: file}")
    assert ended == 4 and "mnist is not in" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "Missing argument"),
        (("trian", "x"), "No such command 'trian'"),
        (("train", "x.yaml", "--epochs", "3"), "No such option"),
        (("train", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("resume", "nowhere"), "unknown run 'nowhere'"),
        (("eval", "nowhere"), "unknown run 'nowhere'"),
        (("predict", "nowhere", "x.png"), "unknown run 'nowhere'"),
        (("list", "modles"), "unknown table 'modles'; did you mean 'models'?"),
    ],
)
def test_bad_usage_is_exit_code_2(call: Call, words: tuple[str, ...], said: str) -> None:
    ended, _, err = call(*words)
    assert ended == 2 and said in err, err


def test_training_ends_with_a_test_number_and_the_run_folder(call: Call, tmp_path: Path) -> None:
    ended, out, err = call("train", QUICK, *HERE)
    assert ended == 0 and err == ""
    assert "epoch 1  step 21" in out and "357 of 357 images" in out
    *_, report, first, second, third = out.splitlines()
    assert report.endswith(str(tmp_path / "runs" / "quickstart" / "1" / "report.html"))
    assert first == "next: raycnn eval quickstart/1"
    assert "raycnn predict quickstart/1" in second and "raycnn export quickstart/1" in third


def test_a_finished_run_is_not_trained_again_but_longer_on_request(call: Call) -> None:
    call("train", QUICK, *HERE)
    ended, out, _ = call("resume", "quickstart")
    assert ended == 0 and "quickstart/1 is done: 1 epochs; train.epochs=2" in out
    ended, out, _ = call("resume", "quickstart", "train.epochs=2")
    assert ended == 0 and "resuming from epoch 1" in out and "epoch 2  step 42" in out
    ended, _, err = call("resume", "quickstart", "train.epochs=1")
    assert ended == 2 and "train.epochs: is 1, but the run has already started epoch 2" in err


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(call: Call) -> None:
    call("train", QUICK, *HERE)
    run = Run.find("quickstart")
    shutil.rmtree(run.checkpoints)
    ended, out, _ = call("resume", "quickstart")
    assert ended == 0 and "quickstart/1 is done" in out and not run.checkpoints.exists()


def test_what_cannot_change_on_resume_is_refused_and_the_run_kept(call: Call) -> None:
    call("train", QUICK, *HERE)
    before = Run.find("quickstart").job().tree()
    ended, _, err = call("resume", "quickstart", "train.epochs=2", "model.pool=avg")
    assert ended == 2 and "model: cannot change" in err
    ended, _, err = call("resume", "quickstart", "train.epochs=2", "name=other")
    assert ended == 2 and "name: cannot change" in err
    assert Run.find("quickstart").job().tree() == before and Run.find("quickstart").result()


def test_a_resume_on_other_images_is_refused_and_the_run_and_its_result_kept(
    call: Call, tmp_path: Path
) -> None:
    pictures, other = (write_pictures(tmp_path / name, ["a", "b"], 10) for name in ("one", "two"))
    small = ("model=lenet", "data.size=28", "train.batch_size=8")
    assert call("train", pictures, *small, *HERE)[0] == 0
    run = Run.find("one")
    before, result, details = run.job(), run.result(), run.per_class()
    ended, _, err = call("resume", "one", "train.epochs=2", f"data.root={other}")
    assert ended == 4 and "not the ones the run was started with" in err
    assert run.job() == before and result == run.result() and details == run.per_class()
    ended, out, _ = call("resume", "one", "train.epochs=2")
    assert ended == 0 and "resuming from epoch 1" in out and run.result() != result
    assert not list(run.folder.glob(".*.json"))


def test_a_resume_that_trains_keeps_its_changes_whatever_ends_it(
    call: Call, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run without a checkpoint, which does not continue from one."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run.create(job(workers={"launcher": "local", "device": "cpu"}))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", full)
        ended, _, err = call("resume", run.folder, "train.batch_size=30")
    assert ended == 3 and "No space left" in err
    assert run.job().train.batch_size == 30


def test_a_name_that_no_file_can_have_is_refused(call: Call) -> None:
    for words in (("train", "x" * 300), ("predict", "x" * 300, "."), ("data", "x" * 300)):
        ended, _, err = call(*words)
        assert ended == 2 and "xxx" in err and "Traceback" not in err


def test_a_reader_of_the_output_may_close_it(tmp_path: Path) -> None:
    """As `head` does."""
    command = [sys.executable, "-m", "raycnn", "schema"]
    reader, output = os.pipe()
    os.close(reader)
    with open(output, "wb") as closed:
        done = subprocess.run(command, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE)
    assert done.returncode == 1 and not done.stderr, "as for every program of click"


def test_damaged_weights_are_bad_data(call: Call) -> None:
    call("train", QUICK, *HERE)
    model = Run.find("quickstart").weights("best") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    for words in (
        ("eval", "quickstart"),
        ("predict", "quickstart", QUICK),
        ("resume", "quickstart"),
    ):
        ended, _, err = call(*words)
        assert ended == 4 and "model.safetensors" in err and "Traceback" not in err


def test_evaluation_agrees_with_the_training_that_made_the_weights(call: Call) -> None:
    call("train", QUICK, "workers.count=1", "train.epochs=2")
    run = Run.find("quickstart")
    for split, count in (("test", 357), ("val", 144), ("train", 1296)):
        ended, out, _ = call("eval", "quickstart", "--split", split, "--json")
        assert ended == 0 and json.loads(out)[split]["count"] == count
    _, out, _ = call("eval", "quickstart", "--split", "val", "--checkpoint", "last", "--json")
    assert json.loads(out)["val"]["acc1"] == pytest.approx(float(run.rows()[-1]["val/acc1"]))
    _, out, _ = call("eval", "quickstart")
    assert f"test {(run.result() or {})['test']['acc1']:.2%}" in out and "precision" in out
    ended, _, err = call("eval", "quickstart", "--split", "tests")
    assert ended == 2 and "did you mean 'test'?" in err


def test_the_printed_spec_is_the_whole_job_and_trains_as_it(call: Call, tmp_path: Path) -> None:
    from raycnn.config.load import load_job

    ended, out, _ = call("train", QUICK, "seed=5", "--print")
    (tmp_path / "printed.yaml").write_text(out)
    assert ended == 0 and not (tmp_path / "runs").exists()
    assert load_job(tmp_path / "printed.yaml").tree() == load_job(QUICK, ["seed=5"]).tree()


def test_recipes_are_listed_with_what_they_are(call: Call) -> None:
    _, out, _ = call("list", "recipes", "--json")
    recipes = json.loads(out)
    assert recipes.keys() == recipe_files().keys() and all(recipes.values())
    assert recipes["lenet-mnist-modern"] == (
        "LeNet with ReLU and max pooling on MNIST, crops, and an average of the weights"
    )
    _, out, _ = call("list", "recipes")
    assert out.splitlines()[-1].split()[:2] == ["zoo.tune", "Learning"]


def test_what_comes_after_a_check_has_its_changes(call: Call) -> None:
    change = "model={name: lenet, pool: max}"
    _, out, _ = call("check", "quickstart", change)
    assert out.splitlines()[-1] == f"next: raycnn train quickstart {quote(change)}"


def test_runs_are_listed_with_how_they_stand(call: Call, job: MakeJob) -> None:
    train(job())
    Run.create(job())
    Run.create(job(optimizer__lr=0.5, train__epochs=9))
    _, out, _ = call("list", "runs")
    header, *rows = (line.split() for line in out.splitlines())
    assert header[:6] == ["run", "state", "epochs", "val", "test", "model"]
    assert rows[0][:3] == ["tiny/1", "done", "3"] and rows[0][5] == "lenet"
    assert rows[1][:4] == ["tiny/2", "stopped", "0", "lenet"]
    assert rows[2][-2:] == ["optimizer.lr=0.5", "train.epochs=9"]
    _, out, _ = call("list", "runs", "--sort", "test", "--json")
    listed = json.loads(out)
    assert listed[0]["test"] == (Run.find("tiny/1").result() or {})["test"]["acc1"]
    assert [run["state"] for run in listed] == ["done", "stopped", "stopped"]
    train(job(train__epochs=1))
    _, out, _ = call("list", "runs", "--sort", "test", "--json")
    tests = [run["test"] for run in json.loads(out)]
    assert tests[0] > tests[1] and tests[2:] == [None, None], "the best first"
    assert call("list", "runs", "--sort", "tset")[0] == 2


def test_what_changed_in_a_list_is_listed_as_one_change(call: Call, job: MakeJob) -> None:
    Run.create(job())
    transforms = [{"name": "resize", "size": 12}, {"name": "horizontal_flip", "p": 0.3}]
    csv = {"name": "csv", "train": "pictures.csv", "transforms": transforms}
    Run.create(
        job(data=csv, optimizer={"name": "adam", "lr": 0.05, "betas": [0.8, 0.9]}, trackers=[])
    )
    _, out, _ = call("list", "runs", "--json")
    changed = json.loads(out)[1]["changed"]
    assert changed["data.name"] == "csv"
    assert changed["data.transforms"] == "[resize, horizontal_flip]"
    assert changed["data.transforms.p"] == "[0.3]" and "data.transforms.size" not in changed
    assert changed["optimizer.betas"] == "[0.8, 0.9]" and changed["trackers"] == "[]"


def test_a_default_is_no_change_where_it_is_not_written(call: Call, job: MakeJob) -> None:
    """The first run is of a version without these keys, in which biases decayed as well."""
    file = Run.create(job()).folder / "job.yaml"
    tree, _ = load_yaml(file, "job.yaml")
    del tree["trackers"], tree["optimizer"]["decay_norm_and_bias"], tree["train"]["deterministic"]
    write(file, tree)
    written = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    Run.create(job(optimizer=written, train__compile="auto", train__ema=0.9))
    teacher = {"teacher": "another", "alpha": 0.5}
    Run.create(job(train__deterministic=True, train__distillation=teacher))
    _, out, _ = call("list", "runs", "--json")
    _, second, third = (run["changed"] for run in json.loads(out))
    was_other = {"optimizer.decay_norm_and_bias": "false"}
    assert second == was_other | {"train.compile": "auto", "train.ema": "0.9"}
    told = {"train.deterministic": "true", "train.distillation.teacher": "another"}
    assert third == was_other | told


def test_a_run_that_may_not_be_read_is_listed_with_the_others(call: Call, job: MakeJob) -> None:
    Run.create(job())
    torn = Run.create(job())
    (torn.folder / "job.yaml").write_bytes(b"\x80 torn")
    (torn.folder / "metrics.csv").write_bytes(b"\x00\xff")
    ended, out, err = call("list", "runs")
    assert ended == 0 and err == "" and [line.split()[0] for line in out.splitlines()] == [
        "run", "tiny/1", "tiny/2",
    ]  # fmt: skip


def test_everything_a_spec_can_name_is_listed(call: Call) -> None:
    _, out, _ = call("list")
    for word in (
        "digits",
        "alexnet",
        "adamw",
        "one_cycle",
        "random_crop",
        "padding",
        "momentum=0.0",
    ):
        assert word in out


def test_the_schema_accepts_every_job(call: Call) -> None:
    import jsonschema
    from ruamel.yaml import YAML

    _, out, _ = call("schema")
    for path in JOBS:
        jsonschema.validate(YAML(typ="safe").load(path.read_text()), json.loads(out))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "modle": "lenet"}, json.loads(out))


def test_every_verb_explains_itself(call: Call) -> None:
    for command in COMMANDS:
        ended, out, _ = call(command, "--help")
        assert ended == 0 and len(out.splitlines()) > 4


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug\n"),
    ],
)
def test_a_worker_that_met_others_ends_as_any_process_but_at_once(
    ends: str, code: int, said: str
) -> None:
    """That it met others is made up here; tests/faults/test_workers.py has real ones."""
    script = f"""
import sys
from types import SimpleNamespace
from raycnn.cli.worker_exit import without_finalizing
sys.modules["raycnn.runtime.distributed"] = SimpleNamespace(has_joined_group=True)
try:
    with without_finalizing():
        print("kept")
        {ends}
finally:
    print("too late")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "kept\n")
    assert done.stderr.endswith(said) and bool(done.stderr) == bool(said)


def test_weights_of_a_search_may_be_files_of_the_cluster(call: Call) -> None:
    space = "tune={space: {model.weights: {choice: [null, /cluster/w.safetensors]}}}"
    code, _, err = call("submit", QUICK, space, "--address", "http://127.0.0.1:1")
    assert code == 5, err


def test_data_at_a_uri_is_not_copied_to_be_submitted(call: Call, tmp_path: Path) -> None:
    data = "data={name: folder, path: 's3://nowhere/pictures', size: 8}"
    code, out, err = call("submit", QUICK, data, "--address", "http://127.0.0.1:1")
    assert code == 5 and "not checked here, but on the cluster: s3://nowhere" in out, err
