"""What people feed a command line, beside what each module's own tests feed it: real files, real runs."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import DataError
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import CheckpointSkipped, VersionDiffers
from tests.support.images import refusal, write_pictures
from tests.support.jobs import ROOT
from tests.support.processes import Call, raycnn
from tests.support.runs import happened, numbers, same, train, weights

MakeJob = Callable[..., JobSpec]
QUICK = (ROOT / "jobs" / "quickstart.yaml").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (QUICK.decode().encode("utf-16"), "cannot read bad.yaml: 'utf-8' codec can't decode"),
        (bytes(range(256)), "cannot read bad.yaml"),
        (b"name: a\0b\n", "unacceptable character"),
        (b"a: " + b"[" * 100_000, "bad.yaml:1: more than 32 levels deep"),
        (b"a: " + b"{" * 100_000, "bad.yaml:1: more than 32 levels deep"),
        (b'a: "\\UFFFFFFFF"', "bad.yaml: not YAML"),
        (b"a: " + b"9" * 10_000, "bad.yaml:1: a number of more than 1000 digits"),
        (b"seed: 1\na: " + b"9" * 5_000, "bad.yaml:2: a number of more than 1000 digits"),
        (b"a: [0.5, 1." + b"3" * 5_000 + b"]", "bad.yaml:1: a number of more than 1000 digits"),
        (b"name: x\n1: 2\n", "bad.yaml:2: a key must be a word, not '1'"),
        (b"? [3]\n: 4\n", "bad.yaml:1: a key must be a word, not a sequence"),
        (b"train: {{a: 1}: 2}\n", "bad.yaml:1: a key must be a word, not a mapping"),
        (b"train: {null: 2}\n", "bad.yaml:1: a key must be a word, not 'null'"),
        (QUICK.replace(b"epochs: 15", b"epochs: 2024-01-01"), "bad.yaml:12: train.epochs"),
        (QUICK.replace(b"name: sgd", b"name: yes"), "bad.yaml:10: optimizer.name: unknown optimizer 'yes'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_spec_is_refused_in_a_moment(
    call: Call, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    ended, _, err = call("check", "bad.yaml")
    assert ended == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + QUICK, QUICK.replace(b"\n", b"\r\n"), QUICK + "# 好\n".encode()],
    ids=["byte-order-mark", "windows-lines", "chinese"],
)
def test_a_file_of_any_editor_is_read(call: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "good.yaml").write_bytes(content)
    assert call("check", "good.yaml", "workers.count=1")[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train..epochs=3", "train.: unknown key ''"),
        ("=3", "'=3' is not a change"),
        ("train=3", "train: must be a mapping, not 3"),
        ("train.epochs={[1, 2]: 3}", "command line:1: a key must be a word, not a sequence"),
        ("seed=" + "9" * 5_000, "command line:1: a number of more than 1000 digits"),
        ("seed=" + "9" * 500, "seed: must be"),
        ("train.class_weights={cat: 2}", "train.class_weights: must be `balanced`, or a list"),
        ("train.class_weights=[1, a]", "train.class_weights: must be `balanced`, or a list"),
        ("train.class_weights=even", "train.class_weights: must be `balanced`, or a list"),
        (
            "learning_rate=0.1",
            "learning_rate: unknown key 'learning_rate'; did you mean 'optimizer.lr'?",
        ),
        ("lr=0.1", "lr: unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("epochs=3", "epochs: unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("max_epochs=3", "max_epochs: unknown key 'max_epochs'; did you mean 'train.epochs'?"),
        (
            "optimizer.learning_rate=0.1",
            "optimizer.learning_rate: unknown sgd option 'learning_rate'; did you mean 'lr'?",
        ),
        ("model=efficientnet_b0", "did you mean 'torchvision:efficientnet_b0'?"),
        ("train.epochs.x=3", "train.epochs: must be a valid integer"),
        ("model=null", "model: must be a name, or a mapping"),
        ("optimizer=5", "optimizer: must be a name, or a mapping, not 5"),
        ("schedule=[1]", "schedule: must be a name, or a mapping, not [1]"),
        ("data.transforms=[4]", "data.transforms.0: must be a name, or a mapping, not 4"),
        ("data.transforms={a: {}}", "data.transforms: must be a valid list, not a mapping"),
        ("optimizer=adm", "command line: optimizer.name: unknown optimizer 'adm'"),
        ("optimizer=sgd", "command line: optimizer.lr: is missing"),
        ("optimizer.name=adam2", "command line: optimizer.name: unknown optimizer"),
        ("optimizer.name=adamw", "command line: optimizer.lr: is missing"),
        ("data={transforms: [random_crop]}", "command line: data.transforms.0.padding: is missing"),
        (
            "data.transforms=[{name: center_crop, size: 99}]",
            "data.transforms.0.size: 99 x 99 is not",
        ),
        ("name=_a", "name: must be at most 64 of a-z, 0-9, '.', '_' and '-', and begin with a-z"),
        ("optimizer={momentun: 0.9}", "command line: optimizer.momentun: unknown sgd option"),
        ("optimizer={type: sgd}", "unknown sgd option 'type'; did you mean 'name'?"),
        ("extends=other.yaml", "command line: extends: can only be set at the top of a file"),
        ("optimizer.lr=1e400", "optimizer.lr: must be a finite number"),
        ("failure.rollback_lr=1", "failure.rollback_lr: must be less than 1"),
        ("failure.rollbacks=-1", "failure.rollbacks: must be greater than or equal to 0"),
        ("workers.timeout_s=1", "workers.timeout_s: must be greater than or equal to 10"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(call: Call, change: str, said: str) -> None:
    ended, _, err = call("check", ROOT / "jobs" / "quickstart.yaml", change)
    assert ended == 2 and said in err and "Traceback" not in err


def test_every_mistake_in_the_components_is_said_at_once_with_its_line(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: bad\n"
        "data:\n"
        "  name: digits\n"
        "  tranforms: []\n"
        "  transforms:\n"
        "    - horizontal_flp\n"
        "    - {name: random_crop, paddin: 4}\n"
        "model: {name: lenet, wieghts: a}\n"
        "optimizer: {name: sdg, lr: 0.1}\n"
        "schedule: one_cycel\n"
        "train: {epochs: 3, batch_size: 8}\n"
    )
    ended, out, err = call("check", "bad.yaml")
    said = [line.removeprefix("raycnn: ").partition(" (")[0] for line in err.splitlines()]
    assert ended == 2 and not out and said == [
        "bad.yaml:4: data.tranforms: unknown digits option 'tranforms'; did you mean 'transforms'?",
        "bad.yaml:6: data.transforms.0.name: unknown transform 'horizontal_flp'; "
        "did you mean 'horizontal_flip'?",
        "bad.yaml:7: data.transforms.1.paddin: unknown random_crop option 'paddin'; "
        "did you mean 'padding'?",
        "bad.yaml:7: data.transforms.1.padding: is missing",
        "bad.yaml:8: model.wieghts: unknown lenet option 'wieghts'; did you mean 'weights'?",
        "bad.yaml:9: optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'?",
        "bad.yaml:10: schedule.name: unknown schedule 'one_cycel'; did you mean 'one_cycle'?",
    ]  # fmt: skip


def test_a_mistake_is_said_once_whatever_else_the_option_could_be(call: Call) -> None:
    ended, _, err = call("check", "quickstart", "data.transforms=[{name: resize, size: -4}]")
    assert ended == 2 and len(err.splitlines()) == 1, err


def test_what_a_spec_changes_of_another_is_blamed_on_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\ndata:\n  name: digits\n  transforms:\n    - name: random_crop\n"
        "      padding: 2\nmodel: lenet\noptimizer:\n  name: adamw\n  lr: 0.1\n"
        "train: {epochs: 2}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\noptimizer: sgd\ndata:\n  transforms: [random_crop]\n"
    )
    ended, _, err = call("check", "mine.yaml")
    assert ended == 2 and err.splitlines() == [
        "raycnn: mine.yaml:4: data.transforms.0.padding: is missing",
        "mine.yaml:2: optimizer.lr: is missing",
    ]
    (tmp_path / "s.yaml").write_text(
        "extends: base.yaml\ntune: {}\narchitectures:\n  - {name: two, model: lenet, optimizer: sgd}\n"
    )
    ended, _, err = call("tune", "s.yaml", "--dry-run")
    assert ended == 2 and "s.yaml:4: optimizer.lr: is missing" in err, err


@pytest.mark.parametrize("command", ["check", "compare-devices", "lr-finder"])
def test_a_mistake_in_a_later_stage_is_found_by_every_command(call: Call, command: str) -> None:
    devices = ["--devices", "cpu,cpu"] if command == "compare-devices" else []
    stage = "{epoch: 1, changes: {optimizer.lr_by_prefix: {nowhere: 0.1}}}"
    ended, _, err = call(command, "quickstart", f"stages=[{stage}]", *devices)
    assert ended == 2 and "stages.0.changes: optimizer.lr_by_prefix.nowhere: unknown" in err


def test_of_very_many_mistakes_ten_are_shown_and_the_others_counted(
    call: Call, tmp_path: Path
) -> None:
    unknown = "".join(f"k{number}: 1\n" for number in range(5_000))
    (tmp_path / "bad.yaml").write_text(unknown + QUICK.decode())
    ended, _, err = call("check", "bad.yaml")
    assert ended == 2 and len(err.splitlines()) == 11 and len(err) < 4_000
    assert "bad.yaml:1: k0: unknown key 'k0'" in err and "and 4,990 more" in err
    (tmp_path / "long.yaml").write_text(f"{'k' * 1_000}: 1\n" + QUICK.decode())
    ended, _, err = call("check", "long.yaml")
    assert ended == 2 and "long.yaml:1: kkk" in err and len(err) < 2_000
    (tmp_path / "text.yaml").write_text(QUICK.decode().replace("lr: 0.05", f"lr: {'x' * 500_000}"))
    ended, _, err = call("check", "text.yaml")
    assert ended == 2 and "optimizer.lr: must be a valid number" in err and len(err) < 2_000


@pytest.mark.parametrize("name", ["nothing-like-it.yaml", "x", "lists/of/zebras.yaml"])
def test_a_name_unlike_all_others_suggests_none(call: Call, name: str) -> None:
    ended, _, err = call("check", name)
    assert ended == 2 and f"cannot read {name}" in err and "did you mean" not in err


def test_a_name_like_another_suggests_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "flowers.yaml").write_bytes(QUICK)
    assert "did you mean 'flowers.yaml'?" in call("check", "flower.yaml")[2]
    assert "did you mean 'quickstart'?" in call("check", "quikstart")[2]
    assert "did you mean 'lenet-mnist'?" in call("check", "lenet-mnits")[2]


def test_a_file_wins_over_a_job_that_comes_with_raycnn(call: Call, tmp_path: Path) -> None:
    (tmp_path / "quickstart").write_bytes(QUICK.replace(b"name: quickstart", b"name: my-own"))
    ended, out, _ = call("train", "quickstart", "--print")
    assert ended == 0 and "name: my-own" in out


def test_a_user_without_a_home_is_told_of_raycnn_cache(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number which no user has."""
    import pwd

    def nobody_known(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "RAYCNN_CACHE", "XDG_CACHE_HOME", "LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody_known)
    ended, _, err = call("data", "digits")
    assert ended == 3 and "RAYCNN_CACHE" in err and "Traceback" not in err
    assert call("list", "models")[0] == 0


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(
    job: MakeJob, tmp_path: Path, encoding: str
) -> None:
    run = train(job(train__epochs=1))
    pictures = write_pictures(tmp_path / "pictures", ["a"], 1)
    for name in (b"not-utf-8-\xff.png", "\u597d.png".encode(), b"z.png"):
        shutil.copy(pictures / "a" / "0.png", os.path.join(os.fsencode(pictures), name))
    (pictures / "a" / "0.png").write_bytes(b"broken")
    done = raycnn("predict", run.folder, pictures, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 3 and "z.png" in done.stdout
    assert "not-utf-8-\\udcff.png" in done.stdout and "0.png" in done.stderr


def test_a_bad_ray_address_of_the_environment_is_named_as_such(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    ended, _, err = call("train", "quickstart")
    assert ended == 3 and err.startswith("raycnn: RAY_ADDRESS: 'nonsense'")
    ended, _, err = call("train", "quickstart", "workers.address=other")
    assert ended == 2 and "workers.address: 'other'" in err


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, to whom nothing is forbidden."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_data_that_may_not_be_read_is_bad_data(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_pictures(tmp_path, ["a", "b"], 2)
    tmp_path.chmod(0o000)
    request.getfixturevalue("nobody")
    try:
        assert "Permission denied" in refusal("folder", tmp_path)
    finally:
        os.seteuid(os.getuid())
        tmp_path.chmod(0o700)


def test_what_is_no_run_cannot_be_resumed(call: Call, tmp_path: Path, job: MakeJob) -> None:
    (tmp_path / "empty").mkdir()
    ended, _, err = call("resume", "empty")
    assert ended == 2 and "unknown run 'empty'" in err
    run = Run.create(job())
    (run.folder / "job.yaml").write_bytes(b"\x80 torn")
    ended, _, err = call("resume", run.folder)
    assert ended == 2 and "job.yaml" in err and "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"name: ti", b"\x80 torn"])
def test_a_run_whose_spec_is_damaged_resumes_with_that_of_its_checkpoint(
    job: MakeJob, content: bytes
) -> None:
    spec = job(schedule="constant")
    unbroken, run = train(spec), train(spec.change({"train.epochs": 2}))
    (run.folder / "job.yaml").write_bytes(content)
    assert run.job().tree() == spec.change({"train.epochs": 2}).tree()
    train(spec, run)
    assert same(weights(unbroken), weights(run))


def test_what_uses_a_network_takes_the_latest_run_that_has_one(job: MakeJob) -> None:
    run, failed = train(job(train__epochs=1)), Run.create(job())
    root = str(run.folder.parents[1])
    assert Run.find("tiny", root, trained=True).folder == run.folder
    assert Run.find("tiny", root).folder == failed.folder
    assert Run.find("tiny/2", root, trained=True).folder == failed.folder


def test_torn_side_files_lose_nothing_that_counts(call: Call, job: MakeJob) -> None:
    """As a machine that loses its power may leave them."""
    spec = job(schedule="constant")
    unbroken, run = train(spec), train(spec.change({"train.epochs": 2}))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "ev')
    for name in ("metrics.csv", "progress.json", "result.json", "checkpoints/index.json"):
        (run.folder / name).write_bytes(b"\x00\xff{torn")
    ended, out, err = call("list", "runs", "--runs", spec.storage.path)
    assert ended == 0 and "stopped" in out, err
    train(spec, run)
    assert same(weights(unbroken), weights(run)) and numbers(unbroken) == numbers(run)


def test_a_search_that_cannot_be_read_hides_no_other(call: Call, tmp_path: Path) -> None:
    for number, content in ((1, b""), (2, b"\x80 torn"), (3, b"name: a\n")):
        (tmp_path / f"runs/s/{number}").mkdir(parents=True)
        (tmp_path / f"runs/s/{number}/search.yaml").write_bytes(content)
    ended, out, err = call("list", "runs")
    assert ended == 0 and err == ""
    _, *rows = out.splitlines()
    assert [row.split()[:2] for row in rows] == [[f"s/{number}", "damaged"] for number in (1, 2, 3)]


def test_a_run_passes_over_a_truncated_checkpoint_says_so_and_ends_the_same(job: MakeJob) -> None:
    spec = job()
    unbroken, run = train(spec), Run.create(spec)
    from raycnn.errors import Interrupted

    with pytest.raises(Interrupted):
        train(spec, run, stop_at=9)
    model = run.weights("last") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    train(spec, run)
    assert happened(run, CheckpointSkipped)
    assert same(weights(unbroken), weights(run))
    for path in run.checkpoints.glob("0*"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="no valid checkpoint"):
        train(spec.change({"train.epochs": 4}), run)


def test_other_code_is_said_on_resume(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(job(train__epochs=1))
    monkeypatch.setattr("raycnn.training.setup.__version__", "0.0.9")
    train(job(train__epochs=2, schedule="constant"), run)
    assert happened(run, VersionDiffers)[0].package == "raycnn"


def test_a_checkpoint_of_another_run_is_not_gone_on_from(job: MakeJob) -> None:
    one, other = train(job()), Run.create(job(seed=1))
    shutil.copytree(one.checkpoints, other.checkpoints, dirs_exist_ok=True)
    from raycnn.errors import SpecError

    with pytest.raises(SpecError, match="^seed: "):
        train(job(seed=1), other)
    assert checkpoint_folder.verify_checkpoint(one.weights("last")) is None
