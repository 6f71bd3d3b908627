"""Jobs sent to a real Ray head through its job server, with a token, as from another machine."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer
from packaging.version import Version

from raycnn.cli import main
from raycnn.config import yaml_file
from raycnn.config.load import job_from_tree
from raycnn.errors import ClusterError, EnvironmentUnavailable, RaycnnError, SpecError
from raycnn.runs.directory import Run
from tests.support.images import write_pictures
from tests.support.jobs import ROOT, TINY
from tests.support.processes import free_port, raycnn
from tests.support.runs import numbers, same, train, weights

pytestmark = pytest.mark.ray

TOKEN = "a" * 64
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
RAY = Path(sys.executable).with_name("ray")
HERE = ("workers.launcher=local",)  # where the driver is: Ray's own workers are not the point


class Head:
    """A Ray with a job server, and a home folder of its own."""

    def __init__(self, folder: Path, ray: Path = RAY):
        from raycnn.launch.jobs import client

        self.home = folder / "home"
        self.home.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.server = f"http://127.0.0.1:{port}"
        command = [
            ray, "start", "--head", "--block", "--port=0",
            f"--ray-client-server-port={free_port()}", "--num-cpus=2", f"--dashboard-port={port}",
            f"--dashboard-agent-listen-port={free_port()}",  # of Ray 2.51 the job server forgets which it chose for 0
            f"--temp-dir={folder / 'ray'}",
        ]  # fmt: skip
        own = AUTH | {"HOME": str(self.home), "RAY_USAGE_STATS_ENABLED": "0"}
        own["PATH"] = f"{ray.parent}:{os.environ['PATH']}"  # where a job finds `python`
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 200
        while True:
            try:
                self.cluster = client.Cluster(self.server, TOKEN)
                self.cluster.nodes()
                return
            except ClusterError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.end()
                    pytest.fail((folder / "log").read_text())
                time.sleep(0.3)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def raycnn(self, *words: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
        return raycnn(*words, cwd=cwd, **AUTH, RAYCNN_ADDRESS=self.server)

    def start(self, *words: str | Path, cwd: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "raycnn", *map(str, words)],
            cwd=cwd, env=os.environ | AUTH | {"RAYCNN_ADDRESS": self.server},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def runs(self) -> list[Run]:
        return Run.all(str(self.home / "runs"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with TemporaryDirectory(prefix="raycnn-", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        yield head
        head.end()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    with path.open("w") as file:
        yaml_file.dump(TINY, file)
    return path


def wait_for(what: Callable[[], object], limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_two_jobs_of_one_name_end_with_their_own_codes_in_their_own_folders(
    head: Head, spec: Path, tmp_path: Path
) -> None:
    """At once: one that is done, and one that diverges. The first is fetched."""
    from raycnn.launch.jobs.download import fetch

    good = head.start("submit", spec, *HERE, cwd=tmp_path)
    bad = head.start("submit", spec, *HERE, "optimizer.lr=1e30", "schedule=constant", cwd=tmp_path)
    said, errors = good.communicate(timeout=300)
    assert good.returncode == 0, errors
    assert re.match(rf"raycnn-tiny-[\d-]+-\w+ at {head.server}\n", said)
    assert "epoch 3  step" in said and "357 of 357 images" in said
    assert "Running entrypoint" not in said and errors == ""
    assert said.splitlines()[-1] == f"on this machine: raycnn fetch {said.split()[0]}"

    failed, errors = bad.communicate(timeout=300)
    assert bad.returncode == 1
    assert failed.rstrip().splitlines()[-1].startswith("raycnn: the loss is not finite at step")
    assert "Traceback" not in failed + errors
    folders = {re.findall(r"^run (/.+)$", text, re.MULTILINE)[0] for text in (said, failed)}
    assert folders == {str(run.folder) for run in head.runs()} and len(folders) == 2

    run = Run(Path(re.findall(r"^run (/.+)$", said, re.MULTILINE)[0]))
    copy = fetch(head.cluster, said.split()[0], tmp_path / "copies" / "first")
    assert same(weights(run, "best"), weights(Run(copy), "best"))
    assert Run(copy).state() == "done" and numbers(Run(copy)) == numbers(run)
    assert [path.name for path in copy.parent.iterdir()] == ["first"]
    with pytest.raises(EnvironmentUnavailable, match="already exists"):
        fetch(head.cluster, run.name, copy)
    logs = head.home.parent / "ray" / "session_latest" / "logs"
    sizes = [path.stat().st_size for path in logs.glob("job-driver-*.log")]
    assert max(sizes) < 100_000, "what was packed for the copy is gone from the head"


@pytest.mark.slow
def test_a_stopped_job_has_saved_and_goes_on_to_the_unbroken_weights(
    head: Head, spec: Path, tmp_path: Path
) -> None:
    from raycnn.launch.jobs.download import fetch

    changes = ("name=stopped", "train.epochs=2000", "schedule=constant", "workers.cpus=1")
    done = head.raycnn("submit", spec, *HERE, *changes, "--detach", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[0]
    watcher, leaver = (head.start("logs", "-f", name, cwd=tmp_path) for _ in range(2))
    wait_for(lambda: "epoch 5 " in head.cluster.log(name))
    assert leaver.stdout and leaver.stdout.readline().startswith("run /")
    leaver.send_signal(signal.SIGINT)
    _, errors = leaver.communicate(timeout=60)
    assert leaver.returncode == 130 and "`raycnn logs -f" in errors
    with pytest.raises(EnvironmentUnavailable, match=f"is being trained by {name}"):
        fetch(head.cluster, "stopped/1")
    stopped = head.raycnn("stop", name, cwd=tmp_path)
    assert stopped.returncode == 0 and f"raycnn submit --resume {name}" in stopped.stdout
    watched, errors = watcher.communicate(timeout=60)
    assert watcher.returncode == 130 and f"{name} was stopped" in errors
    assert "stopped on request, and saved" in watched
    run = Run(head.home / "runs" / "stopped" / "1")
    before = len(run.rows())
    assert 5 <= before < 2000 and run.state() == "stopped"

    epochs = f"train.epochs={before + 2}"
    resumed = head.cluster.resume("stopped/1", [epochs])
    assert head.cluster.follow(resumed, lambda text: None).driver_exit_code == 0
    assert len(run.rows()) == before + 2 and "resuming from" in head.cluster.log(resumed)
    about = head.raycnn("status", resumed, cwd=tmp_path).stdout
    assert re.search(rf"SUCCEEDED\n.*stopped, resume.*\nfolder +{run.folder}\n.*code 0\n", about)
    listed = head.raycnn("list", "--jobs", cwd=tmp_path).stdout
    assert re.search(rf"^{name} +STOPPED", listed, re.MULTILINE)
    assert re.search(rf"^{resumed} +SUCCEEDED", listed, re.MULTILINE)

    unbroken = run.job().change({"storage.path": str(tmp_path / "runs")})
    assert same(weights(train(unbroken)), weights(run))


@pytest.mark.slow
def test_a_run_at_a_uri_is_resumed_there_by_its_job(head: Head, spec: Path, tmp_path: Path) -> None:
    root = f"local://{tmp_path}/far"  # a file system of fsspec, which every process here sees
    changes = ("name=far", f"storage.path={root}", "train.epochs=1")
    done = head.raycnn("submit", spec, *HERE, *changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, uri = done.stdout.split()[0], f"{root}/far/1"
    assert f"\nrun {uri}\n" in done.stdout
    assert done.stdout.splitlines()[-1] == f"on this machine: raycnn report {uri}"
    assert f"next     raycnn report {uri}" in head.raycnn("status", name, cwd=tmp_path).stdout
    for other in ("far/1", "far", uri):
        assert head.cluster.find(other).submission_id == name
    more = head.raycnn("submit", "--resume", name, "train.epochs=2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert len(Run.open(uri).rows()) == 2


def test_what_does_not_fit_or_does_not_answer_is_said_within_seconds(
    head: Head, spec: Path, tmp_path: Path
) -> None:
    from raycnn.launch.jobs.client import Cluster

    with pytest.raises(ClusterError, match="9 workers of 1 CPU") as large:
        head.cluster.submit(job_from_tree(TINY).change({"workers.count": 9}))
    assert re.search(r"\n\d+\.\d+\.\d+\.\d+ +2 +0 +0", str(large.value)), "what exists"
    with pytest.raises(SpecError, match="unknown job 'raycnn-no'"):
        head.cluster.find("raycnn-no")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for server in (mute, "http://127.0.0.1:1", "https://nowhere.invalid:8265"):
            began = time.monotonic()
            with pytest.raises(ClusterError, match=f"{server}"):
                Cluster(server)
            assert time.monotonic() - began < 10
    checks_tokens = Version(version("ray")) >= Version("2.52")
    for wrong in ("b" * 64, None) if checks_tokens else ():
        with pytest.raises(ClusterError, match="refuses the token"):
            Cluster(head.server, wrong)


def test_a_bad_spec_is_said_before_a_cluster_is_asked(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", str(spec), "model=lenett", "--address", "http://127.0.0.1:1"]
    monkeypatch.setattr("sys.argv", ["raycnn", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "did you mean 'lenet'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.momentun=0.9", "did you mean 'momentum'?"),
        ("data.pth=pictures", "command line: data.pth: unknown folder option 'pth'"),
        ("schedule={name: step, every: 0}", "schedule.every"),
        ("data.transforms=[{name: resize, size: 12, sice: 12}]", "did you mean 'size'?"),
        ("train={epochs: 3, patience: 2}", "needs images that are held out"),
        ("stages=[{epoch: 1, changes: {optimizer.momentun: 0.5}}]", "stages.0.changes"),
        ("optimizer={name: sgd, lr: 0.1, momentum: 0, nesterov: true}", "nesterov needs a momentum"),
        ("tune={space: {optimizer.momentun: {grid: [0.9, 0.8]}}}", "did you mean 'momentum'?"),
        ("tune={scheduler: ashaa, space: {optimizer.lr: {grid: [0.1, 0.2]}}}", "did you mean 'asha'"),
    ],
)  # fmt: skip
def test_a_bad_spec_with_data_in_a_bucket_is_said_before_a_cluster_is_asked(
    spec: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    said: str,
) -> None:
    val = 0 if "patience" in change else 0.1
    pictures = f"data={{name: folder, path: 's3://bucket/pictures', val: {val}}}"
    words = ["submit", str(spec), pictures, change, "--address", "http://127.0.0.1:1"]
    monkeypatch.setattr("sys.argv", ["raycnn", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_job_of_pictures_is_checked_before_a_cluster_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["cat", "dog"], 4)
    words = ["submit", str(pictures), "model.freeze=[layer_1]", "--address", "http://127.0.0.1:1"]
    monkeypatch.setattr("sys.argv", ["raycnn", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "model.freeze" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("host:8265", "http://host:8265"),
        ("https://host/", "https://host"),
        ("ray://host:10001", None),
        ("auto", None),
        ("http://", None),
        ("http://[::1", None),
        ("host:99999", None),
        ("host:0", None),
    ],
)
def test_an_address_is_a_job_servers(given: str, url: str | None) -> None:
    from raycnn.launch.jobs.client import server_of

    if url:
        assert server_of(given) == url
    else:
        with pytest.raises(
            SpecError, match=re.escape(f"'{given}' is not the address of a job server")
        ):
            server_of(given)


@pytest.mark.slow
def test_workers_and_trials_are_started_on_the_cluster_that_was_asked(
    head: Head, spec: Path, tmp_path: Path
) -> None:
    """Two workers of Ray's, then a search: each says where its folder is, and is fetched."""
    changes = ("workers.count=2", "storage.report=true")
    wide = head.raycnn("submit", spec, *changes, "--with-code", cwd=tmp_path)
    assert wide.returncode == 0, wide.stdout + wide.stderr
    assert "connecting to Ray at" in wide.stdout and "357 of 357 images" in wide.stdout
    run = Run(Path(re.findall(r"^run (/.+)$", wide.stdout, re.MULTILINE)[0]))
    assert (run.folder / "report.html").is_file(), "its templates were sent along"
    fetched = head.raycnn("fetch", wide.stdout.split()[0], cwd=tmp_path)
    copy = tmp_path / "runs" / run.name
    expected = [str(copy), f"report {copy / 'report.html'}", f"next: raycnn eval {copy}"]
    assert fetched.stdout.splitlines() == expected, fetched.stderr

    search = tmp_path / "search.yaml"
    tune = {"trials": 2, "space": {"optimizer.lr": {"loguniform": [0.01, 0.1]}}}
    base = {key: value for key, value in TINY.items() if key != "model"}
    whole = base | {"name": "search", "architectures": ["lenet", spec.name], "tune": tune}
    shutil.copy(spec, tmp_path)
    with search.open("w") as file:
        yaml_file.dump(whole, file)
    done = head.raycnn("submit", search, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = head.raycnn("fetch", "search", cwd=tmp_path)
    assert fetched.stdout.splitlines()[0] == str(tmp_path / "runs" / "search" / "1"), fetched.stderr
    again = head.raycnn("fetch", "search/1", cwd=tmp_path)
    assert again.stdout.splitlines()[0] == str(tmp_path / "runs" / "search" / "2"), again.stderr
    assert "SUCCEEDED" in head.raycnn("status", "search/1", cwd=tmp_path).stdout
    assert "has ended: SUCCEEDED" in head.raycnn("stop", "search/1", cwd=tmp_path).stdout
    assert head.raycnn("logs", "search/1", cwd=tmp_path).stdout
    trials = sorted(path.name for path in (tmp_path / "runs/search/1/trials").iterdir())
    assert trials == ["lenet-000", "lenet-001", "tiny-000", "tiny-001"]
    assert (tmp_path / "runs/search/1/best-lenet.yaml").is_file()


def test_rays_own_client_submits_with_the_manuals_command(head: Head, tmp_path: Path) -> None:
    """As it stands there, but for the folder that nodes share."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    (command,) = re.findall(r"^`(.*ray job submit.*)`$", page, re.MULTILINE)
    (tmp_path / "jobs").mkdir()
    with (tmp_path / "jobs" / "lenet-mnist.yaml").open("w") as file:
        yaml_file.dump(TINY | {"workers": {"launcher": "local"}}, file)
    done = subprocess.run(
        command.replace("/shared/runs", str(tmp_path / "runs")),
        shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"RAY_AUTH_TOKEN": TOKEN, "RAY_API_SERVER_ADDRESS": head.server}
        | {"PATH": f"{RAY.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = Run.all(str(tmp_path / "runs"))
    assert run.state() == "done" and "357 of 357 images" in done.stdout


@pytest.mark.slow
def test_a_folder_of_pictures_is_trained_on_the_cluster(head: Head, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["cat", "dog"], 20)
    done = head.raycnn("submit", pictures, "train.epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(pictures) in done.stdout and "1 of 1" in done.stdout
    (run,) = [one for one in head.runs() if one.name.startswith("pictures/")]
    assert run.result() and run.job().data.root == str(pictures)


@pytest.mark.slow
@pytest.mark.skipif(
    "RAYCNN_OTHER_RAY" not in os.environ, reason="names the `ray` of a venv with raycnn"
)
def test_a_cluster_with_another_ray_takes_jobs_from_here(spec: Path, tmp_path: Path) -> None:
    """Submitted with two workers of its own, shown, stopped, and fetched."""
    import ray

    with TemporaryDirectory(prefix="raycnn-", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder), Path(os.environ["RAYCNN_OTHER_RAY"]))
        try:
            assert head.cluster.ray_version != ray.__version__
            done = head.raycnn("submit", spec, "workers.count=2", "workers.cpus=1", cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "357 of 357 images" in done.stdout
            name = done.stdout.split()[0]
            assert "SUCCEEDED" in head.raycnn("status", name, cwd=tmp_path).stdout
            assert "357 of 357 images" in head.raycnn("logs", name, cwd=tmp_path).stdout
            fetched = head.raycnn("fetch", name, cwd=tmp_path)
            copy = tmp_path / fetched.stdout.splitlines()[0]
            assert Run(copy).state() == "done", fetched.stderr
            long = ("name=long", "train.epochs=2000", "--detach")
            name = head.raycnn("submit", spec, *HERE, *long, cwd=tmp_path).stdout.split()[0]
            wait_for(lambda: "epoch 5 " in head.cluster.log(name))
            assert "STOPPED" in head.raycnn("stop", name, cwd=tmp_path).stdout
        finally:
            head.end()


@pytest.mark.slow
def test_without_an_address_a_ray_is_started_here_and_ended(spec: Path, tmp_path: Path) -> None:
    none = {"RAYCNN_ADDRESS": "", "RAY_ADDRESS": ""}
    done = raycnn("submit", spec, *HERE, cwd=tmp_path, **none)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Run.find("tiny", str(tmp_path / "runs")).state() == "done"
    server = re.findall(r"at (http://\S+)", done.stdout)[0]
    gone = raycnn("status", "--address", server, cwd=tmp_path)
    assert gone.returncode == 5 and f"{server}" in gone.stderr
    staying = raycnn("submit", spec, "--detach", cwd=tmp_path, **none)
    assert staying.returncode == 2 and "no cluster address" in staying.stderr


def test_a_job_has_two_minutes_to_save_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's default are three seconds."""
    from raycnn.launch.jobs import client

    sent: dict[str, Any] = {}
    monkeypatch.setattr(client, "_submit", lambda *_, **options: sent.update(options))
    cluster = client.Cluster.__new__(client.Cluster)
    cluster.server, cluster._headers = "http://head:8265", {}
    cluster._start("tiny", ["train", "job.yaml"], tmp_path, "work", code=False)
    assert sent["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", -9, 1), ("FAILED", None, 1)],
)
def test_following_a_job_ends_with_its_exit_code_or_1_if_it_was_killed(
    status: str, driver_exit_code: int | None, code: int
) -> None:
    from raycnn.cli.remote import exit_like
    from raycnn.launch.jobs.client import JobDetails

    ended = 0
    try:
        exit_like(JobDetails.parse({"status": status, "driver_exit_code": driver_exit_code}))
    except (RaycnnError, typer.Exit) as error:
        ended = error.exit_code
    assert ended == code


def test_with_code_everything_in_the_package_is_sent(tmp_path: Path) -> None:
    from raycnn.launch.jobs.client import _copy_code

    _copy_code(tmp_path)
    sent = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {"raycnn/cli/__init__.py", "raycnn/report/templates/run.html"} <= sent
    assert any(name.endswith(".dist-info/METADATA") for name in sent)
    assert not any("__pycache__" in name for name in sent)


def test_a_checkout_is_sent_without_data_runs_and_weights(tmp_path: Path) -> None:
    """As Ray packs it for `ray job submit --working-dir .`."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    if "include_gitignore" not in signature(upload_working_dir_if_needed).parameters:
        pytest.skip("this version of Ray packs what .gitignore names")
    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    for name in ("raycnn", "jobs", "tests"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in (".gitignore", ".rayignore", "uv.lock", "README.md"):
        shutil.copy(ROOT / name, checkout)
    for name in (
        "runs/x/1/a.bin",
        "data/mnist/a.gz",
        ".venv/a.so",
        ".git/a",
        "signs/train.h5",
        "a.pt",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(os.urandom(6 << 20))

    def pack(folder: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    sent = {"working_dir": str(checkout)}
    upload_working_dir_if_needed(sent, include_gitignore=True, upload_fn=pack)
    assert package.stat().st_size < 5 << 20
    names = zipfile.ZipFile(package).namelist()
    assert {"jobs/lenet-mnist.yaml", "raycnn/cli/__init__.py"} <= set(names)
    assert {name.split("/")[0] for name in names} <= {
        "raycnn",
        "jobs",
        "README.md",
        ".gitignore",
        ".rayignore",
        "signs",
    }
