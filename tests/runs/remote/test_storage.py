"""Runs that are kept at a URI, on a server of S3's protocol: created, killed, resumed, listed."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from shlex import quote

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raycnn.analysis.verify_resume import _check_checksums
from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec
from raycnn.config.search import load_search
from raycnn.errors import EnvironmentUnavailable
from raycnn.filesystem import RemoteFolder
from raycnn.launch import dispatch, local
from raycnn.runs.compatibility import completed_epochs
from raycnn.runs.directory import Run
from raycnn.runs.remote import lease
from raycnn.search.folder import Search
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import Event, StorageReached, StorageUnreachable, Warned
from tests.support.images import png
from tests.support.processes import Call, ended, workers
from tests.support.runs import happened, numbers, same, train, weights
from tests.support.s3 import Server
from tests.support.searches import SilentView

MakeJob = Callable[..., JobSpec]


class Silent:
    """A view for nobody."""

    def on_event(self, event: Event) -> None: ...


@pytest.fixture
def bucket(s3: Server) -> str:
    return s3.bucket()


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to be on a machine with an empty cache."""

    def move() -> None:
        monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))

    return move


def wait_until(what: Callable[[], object], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained(job: JobSpec, run: Run | None = None) -> Run:
    """Train in this process as `raycnn train` and `raycnn resume` do."""
    return local.train_locally(job, lambda: run or Run.create(job), Silent())


def checkpoints_there(s3: Server, bucket: str) -> set[str]:
    """Return the names of all checkpoints in a bucket."""
    return {name.split("/")[4] for name in s3.names(bucket) if "/checkpoints/0" in name}


def test_a_run_at_a_uri_is_the_run_of_a_folder(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None]
) -> None:
    here = train(job())
    there = trained(job(storage__path=s3.uri(bucket)))
    assert there.location == s3.uri(bucket, "runs/tiny/1")
    assert same(weights(here), weights(there)) and numbers(here) == numbers(there)

    other_machine()
    again = Run.open(there.location)
    assert again.folder != there.folder and not list(again.checkpoints.iterdir())
    assert again.state() == "done" and again.result() == there.result()
    assert again.events() == there.events() and numbers(again) == numbers(here)
    assert same(weights(again, "best"), weights(here, "best"))
    assert len(list(again.checkpoints.glob("0*"))) == 1  # the other ones were not asked for
    log = (again.folder / "logs" / "rank-0.log").read_text()
    assert "test" in log and list((again.folder / "logs" / "tensorboard").iterdir())


def test_a_run_at_a_uri_that_is_trained_further_is_not_done(
    job: MakeJob, s3: Server, bucket: str
) -> None:
    run = trained(job(storage__path=s3.uri(bucket), train__epochs=1))
    longer = run.job().change({"train.epochs": 2})
    run.reopen(longer)
    with run.lock():
        assert not run.result() and completed_epochs(run, longer) is None
    assert "runs/tiny/1/result.json" not in s3.names(bucket)
    run.cancel_reopening(longer.change({"train.epochs": 1}))
    assert run.result() and "runs/tiny/1/result.json" in s3.names(bucket)


def test_no_two_runs_at_a_uri_get_one_number(job: MakeJob, s3: Server, bucket: str) -> None:
    made: list[str] = []
    spec = job(storage__path=s3.uri(bucket))
    creating = [
        threading.Thread(target=lambda: made.append(Run.create(spec).location)) for _ in range(4)
    ]
    for thread in creating:
        thread.start()
    for thread in creating:
        thread.join()
    assert len(set(made)) == 4  # a number that two wanted at once may be left out


KILLED = """
import os, sys
from raycnn import filesystem
from raycnn.cli import main
sent = 0
upload = filesystem.RemoteFolder.upload

def stop_in_the_middle(self, source, name):
    global sent
    if name.startswith("checkpoints/00002-"):
        with self._sink(name) as sink:
            sink.write(source.read_bytes()[:1000])
        os.kill(os.getpid(), 9)
    return upload(self, source, name)

filesystem.RemoteFolder.upload = stop_in_the_middle
main()
"""


def test_a_run_killed_in_mid_upload_goes_on_to_the_unbroken_one(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    unbroken = train(job())
    run = Run.create(job(storage__path=s3.uri(bucket)))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "resume", run.location], cwd=tmp_path, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any("/checkpoints/00002-" in name for name in s3.names(bucket))
    index = json.loads(s3.read(bucket, "runs/tiny/1/checkpoints/index.json"))
    assert index["last"] == "00001-00000000"

    monkeypatch.setattr(lease, "LEASE_S", 3.0)  # what was killed holds it until it runs out
    other_machine()
    again = Run.open(run.location)
    path, faults = again.latest_checkpoint()
    assert path and path.name == "00001-00000000" and not faults
    trained(again.job(), again)
    assert same(weights(again), weights(unbroken)) and numbers(again) == numbers(unbroken)
    kept = checkpoints_there(s3, bucket)
    assert kept == set(checkpoint_folder.read_index(again.checkpoints).values())


def test_a_checkpoint_that_training_replaces_during_its_upload_ends_no_job(
    job: MakeJob, s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was saved here by a job whose upload failed, so that the next upload begins with it."""
    spec = job(schedule="constant", train__epochs=5, storage__path=s3.uri(bucket))
    run = Run.create(spec)
    upload = RemoteFolder.upload

    def full(remote: RemoteFolder, source: Path, name: str) -> object:
        raise OSError(errno.ENOSPC, "the bucket is full")

    def slow(remote: RemoteFolder, source: Path, name: str) -> object:
        time.sleep(1.0 if name.startswith("checkpoints/") else 0.0)
        return upload(remote, source, name)

    monkeypatch.setattr(RemoteFolder, "upload", full)
    with pytest.raises(EnvironmentUnavailable, match="the bucket is full"):
        trained(spec.change({"train.epochs": 1}), run)
    monkeypatch.setattr(RemoteFolder, "upload", slow)
    with run.syncing(0, 6):
        train(spec, run)
    assert not happened(run, StorageUnreachable)
    index = json.loads(s3.read(bucket, "runs/tiny/1/checkpoints/index.json"))
    assert index == checkpoint_folder.read_index(run.checkpoints)
    kept = checkpoints_there(s3, bucket)
    assert kept == set(index.values()), "nothing is left of the one that was replaced"


PATCHED = """
import errno, time
from raycnn import filesystem
from raycnn.cli import main
upload = filesystem.RemoteFolder.upload

def patched(self, source, name):
    {before}
    return upload(self, source, name)

filesystem.RemoteFolder.upload = patched
main()
"""


def resumed_by_two(run: Run, cwd: Path, before: str) -> tuple[set[int], str]:
    """Resume a run with two workers that execute `before` each upload; return how they ended."""
    program = ("-c", PATCHED.format(before=before))
    return ended(workers(2, run.location, cwd=cwd, verb="resume", program=program))


@pytest.mark.slow
def test_workers_wait_for_an_upload_that_takes_longer_than_they_wait_for_one_another(
    job: MakeJob, s3: Server, bucket: str, tmp_path: Path
) -> None:
    run = Run.create(job(storage__path=s3.uri(bucket), workers={"count": 2, "timeout_s": 10}))
    slow = 'time.sleep(13 * (name.startswith("checkpoints/00001-") and "model." in name))'
    codes, said = resumed_by_two(run, tmp_path, slow)
    assert codes == {0}, said
    done = Run.open(run.location)
    assert done.state() == "done" and len(done.rows()) == 3


@pytest.mark.slow
def test_workers_whose_upload_has_failed_save_here_before_they_end(
    job: MakeJob, s3: Server, bucket: str, tmp_path: Path
) -> None:
    run = Run.create(job(storage__path=s3.uri(bucket), workers__count=2))
    full = 'if name.startswith("checkpoints/00002-"): raise OSError(errno.ENOSPC, "the bucket is full")'
    codes, said = resumed_by_two(run, tmp_path, full)
    assert codes == {3} and "the bucket is full" in said, said
    last = checkpoint_folder.read_index(run.checkpoints)["last"]
    assert last and last > "00002-00000000", "what came after the checkpoint that was not uploaded"


def test_a_damaged_checkpoint_there_leaves_the_one_before(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None]
) -> None:
    run = trained(job(storage__path=s3.uri(bucket)))
    index = checkpoint_folder.read_index(run.checkpoints)
    name = f"runs/tiny/1/checkpoints/{index['last']}/{checkpoint_folder.OPTIMIZER}"
    whole = s3.read(bucket, name)
    s3.client.put_object(Bucket=bucket, Key=name, Body=whole[:-1] + b"?")
    other_machine()
    path, faults = Run.open(run.location).latest_checkpoint()
    assert path and path.name == index["previous"] and len(faults) == 1


def test_a_store_that_is_away_for_a_while_is_waited_for(
    job: MakeJob, s3: Server, bucket: str
) -> None:
    run = Run.create(job(storage__path=s3.uri(bucket)))

    def break_off() -> None:
        with s3.proxy.away():
            wait_until(lambda: happened(run, StorageUnreachable))

    with run.syncing(0, 60):
        train(job(train__epochs=1), run)
        assert run.wait_flushed(60)
        outage = threading.Thread(target=break_off)
        outage.start()
        train(job(), run)
        outage.join()
    assert [event.uri for event in happened(run, StorageUnreachable)] == [run.location]
    assert happened(run, StorageReached)
    index = json.loads(s3.read(bucket, "runs/tiny/1/checkpoints/index.json"))
    assert index == checkpoint_folder.read_index(run.checkpoints)


@pytest.mark.parametrize("file", ["index.json", checkpoint_folder.MODEL])
def test_a_file_that_arrives_with_another_size_is_sent_again(
    file: str, job: MakeJob, s3: Server, bucket: str
) -> None:
    run = Run.create(job(storage__path=s3.uri(bucket)))
    s3.proxy.encoded = file.encode()
    with run.syncing(0, 60):
        training = threading.Thread(target=train, args=(job(), run))
        training.start()
        wait_until(lambda: happened(run, StorageUnreachable))
        s3.proxy.encoded = b""
        training.join()
    (event,) = happened(run, StorageUnreachable)
    assert f"{file} was written with" in event.error
    assert happened(run, StorageReached)
    index = checkpoint_folder.read_index(run.checkpoints)
    folder = "runs/tiny/1/checkpoints"
    assert json.loads(s3.read(bucket, f"{folder}/index.json")) == index
    model = s3.read(bucket, f"{folder}/{index['last']}/{checkpoint_folder.MODEL}")
    assert model == (run.checkpoints / str(index["last"]) / checkpoint_folder.MODEL).read_bytes()


def test_a_damaged_index_there_is_named(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None]
) -> None:
    run = trained(job(storage__path=s3.uri(bucket)))
    name = "checkpoints/index.json"
    s3.client.put_object(Bucket=bucket, Key=f"runs/tiny/1/{name}", Body=b"3a\r\n{}")
    other_machine()
    with pytest.raises(EnvironmentUnavailable, match=f"tiny/1.*{name} is damaged"):
        Run.open(run.location).latest_checkpoint()


def test_a_store_that_stays_away_ends_the_job_resumable(
    job: MakeJob, s3: Server, bucket: str
) -> None:
    spec = job(schedule="constant", storage__path=s3.uri(bucket))
    run = Run.create(spec)
    with pytest.raises(EnvironmentUnavailable) as ended, run.syncing(0, 1):
        train(spec.change({"train.epochs": 1}), run)
        assert run.wait_flushed(60)
        with s3.proxy.away():
            train(spec, run)
            run.wait_flushed(60)
    for word in (
        "storage.path",
        "storage.timeout_s",
        "00001-00000000",
        f"resume {quote(str(run.location))}",
    ):
        assert word in str(ended.value)
    again = Run.open(run.location)
    path, _ = again.latest_checkpoint()
    assert path and path.name >= "00002"  # saved here, and nobody else has trained the run since
    trained(spec, again)
    assert same(weights(again), weights(train(job(schedule="constant"))))


def test_a_machine_that_trained_a_run_before_goes_on_from_what_another_has_trained(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = job(schedule="constant", storage__path=s3.uri(bucket))
    here = os.environ["RAYCNN_CACHE"]
    uri = trained(spec.change({"train.epochs": 1})).location
    other_machine()
    trained(spec.change({"train.epochs": 2}), Run.open(uri))
    monkeypatch.setenv("RAYCNN_CACHE", here)
    path, _ = Run.open(uri).latest_checkpoint()
    assert path and path.name == "00002-00000000"
    run = trained(spec, Run.open(uri))
    unbroken = train(job(schedule="constant"))
    assert same(weights(run), weights(unbroken)) and numbers(run) == numbers(unbroken)


def test_a_trainer_whose_run_was_taken_over_ends_and_uploads_no_index(
    job: MakeJob, s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    spec = job(schedule="constant", storage__path=s3.uri(bucket))
    run, folder = Run.create(spec), "runs/tiny/1"
    with pytest.raises(EnvironmentUnavailable, match="took over"), run.lock(), run.syncing(0, 60):
        train(spec.change({"train.epochs": 1}), run)
        assert run.wait_flushed(60)
        index = s3.read(bucket, f"{folder}/checkpoints/index.json")
        (own,) = [name for name in s3.names(bucket) if f"{folder}/{lease.LEASE}/" in name]

        def is_gone() -> bool:  # a renewal that had begun may write it once more
            s3.client.delete_object(Bucket=bucket, Key=own)
            time.sleep(0.5)
            return own not in s3.names(bucket)

        wait_until(is_gone, 20)
        s3.client.put_object(Bucket=bucket, Key=f"{folder}/{lease.LEASE}/other", Body=b"other")
        train(spec, run)
        run.wait_flushed(60)
    assert s3.read(bucket, f"{folder}/checkpoints/index.json") == index


@pytest.mark.parametrize("verb", ["check", "train"])
def test_what_cannot_work_is_said_before_training_starts(
    verb: str, job: MakeJob, s3: Server, bucket: str, call: Call, tmp_path: Path
) -> None:
    spec = tmp_path / "job.yaml"
    with spec.open("w") as file:
        yaml_file.dump(job().tree(), file)
    code, _, said = call(verb, spec, f"storage.path={s3.uri('nowhere')}")
    assert code == 3 and "storage.path" in said and "nowhere" in said
    with s3.checking_credentials():
        code, _, said = call(verb, spec, f"storage.path={s3.uri(bucket)}")
    assert code == 3 and "storage.path" in said and "Traceback" not in said
    code, _, said = call(verb, spec, "storage.path=nonsense://bucket/runs")
    assert code == 3 and "storage.path" in said and "nonsense" in said
    assert not s3.names(bucket)


def test_the_verbs_take_a_uri(
    job: MakeJob, s3: Server, bucket: str, call: Call, tmp_path: Path,
    other_machine: Callable[[], None],
) -> None:  # fmt: skip
    root = s3.uri(bucket)
    trained(job(storage__path=root))
    Run.create(job(storage__path=root))
    other_machine()
    code, out, _ = call("list", "runs", "--runs", root)
    first, second = (line for line in out.splitlines() if line.startswith("tiny/"))
    assert code == 0 and first.split()[:2] == ["tiny/1", "done"]
    assert second.split()[:2] == ["tiny/2", "stopped"]
    assert not list(Path(os.environ["RAYCNN_CACHE"]).rglob("*.safetensors"))
    assert call("eval", "tiny/1", "--runs", root)[0] == 0
    picture = tmp_path / "picture.png"
    picture.write_bytes(png((8, 8), 7, mode="L"))
    code, out, _ = call("predict", s3.uri(bucket, "runs/tiny/1"), picture)
    assert code == 0 and str(picture) in out
    code, out, _ = call("resume", "tiny/1", "train.epochs=4", "--runs", root)
    uri = s3.uri(bucket, "runs/tiny/1")
    assert f"run {uri}\n" in out and f"next: raycnn eval {quote(uri)}\n" in out
    assert code == 0 and Run.open(s3.uri(bucket, "runs/tiny/1")).state() == "done"
    assert len(Run.open(s3.uri(bucket, "runs/tiny/1")).rows()) == 4
    code, _, said = call("eval", "tinny", "--runs", root)
    assert code == 2 and "tiny" in said


def test_one_machine_trains_a_run(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None], call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(lease, "RENEW_S", 1.0)
    run = Run.create(job(storage__path=s3.uri(bucket)))
    with run.lock():
        other_machine()
        again = Run.open(run.location)
        assert again.state() == "running"
        _, out, _ = call("list", "runs", "--runs", s3.uri(bucket))
        assert "tiny/1  running" in out
        with pytest.raises(EnvironmentUnavailable, match="is being trained"), again.lock():
            pass
    with again.lock():
        pass


def test_a_wish_to_stop_reaches_another_machine(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None]
) -> None:
    run = Run.create(job(storage__path=s3.uri(bucket)))
    with run.syncing(0, 60):
        other_machine()
        Run.open(run.location).request_stop()
        wait_until(run.stop_requested)


def test_what_two_machines_append_is_kept(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None]
) -> None:
    one = Run.create(job(storage__path=s3.uri(bucket)))
    other_machine()
    other = Run.open(one.location)
    for number in range(2):
        for run in (one, other):
            run.add_event(Warned(text=f"{number} of {run.folder}"))
            run.flush()
    other_machine()
    expected = [f"{number} of {run.folder}" for number in range(2) for run in (one, other)]
    assert [event.message for event in Run.open(one.location).events()] == expected


def test_any_file_system_of_fsspec_keeps_runs(
    job: MakeJob, other_machine: Callable[[], None]
) -> None:
    run = trained(job(storage__path="memory://bucket/runs", train__epochs=1))
    other_machine()
    again = Run.open("memory://bucket/runs/tiny/1")
    assert again.state() == "done" and same(weights(again), weights(run))
    other_machine()
    again = Run.open("memory://bucket/runs/tiny/1")
    assert again.copy
    with again.copy.hold_lease():
        other_machine()
        (listed,) = Run.all("memory://bucket/runs")
        assert listed.copy and listed.copy.lease.is_held()
    checked = _check_checksums(Run.open("memory://bucket/runs/tiny/1"))
    assert checked.passed and checked.text == "1 of 1 checkpoints of tiny/1 are intact"


@pytest.mark.parametrize(
    "info",
    [
        {"LastModified": datetime(2026, 1, 31, 23, 59, 59, tzinfo=timezone.utc)},
        {"last_modified": datetime(2026, 2, 1, 1, 59, 59, tzinfo=timezone(timedelta(hours=2)))},
        {"updated": "2026-01-31T23:59:59Z"},
        {"updated": "2026-01-31T23:59:59.0Z", "created": "2020-01-01T00:00:00Z"},
        {"modify": "20260131235959"},
        {"modificationTime": 1769903999000},
        {"mtime": 1769903999.0, "created": 0.0},
        {"created": datetime(2026, 1, 31, 23, 59, 59)},
    ],
    ids=lambda info: next(iter(info)),
)
def test_every_driver_of_fsspec_has_its_times_read(info: dict[str, object]) -> None:
    class Driver(MemoryFileSystem):
        def info(self, path: str, **options: object) -> dict[str, object]:
            kind = "file" if path.endswith("/one") else "directory"
            return {"name": path, "type": kind, "size": 1} | info

        def find(self, path: str, **options: object) -> dict[str, object]:
            return {f"{path}/one": self.info(f"{path}/one")}

    fsspec.register_implementation("timed", Driver, clobber=True)
    folder = RemoteFolder.open("timed://bucket")
    expected_ns = 1_769_903_999 * 10**9
    one = folder.file("one")
    assert one and one.modified_ns == expected_ns
    assert [file.modified_ns for file in folder.files()] == [expected_ns]
    assert copy.copy(folder.system.handler.fs).info("one")["size"] == 1


def test_a_run_that_was_deleted_leaves_nothing_to_the_next_one_of_its_number(
    job: MakeJob, s3: Server, bucket: str, other_machine: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root, caches = s3.uri(bucket), []
    for number in range(2):
        other_machine()
        caches.append(os.environ["RAYCNN_CACHE"])
        if number == 0:
            first = trained(job(storage__path=root, train__epochs=1))
        assert Run.open(first.location).latest_checkpoint()[0]
    for name in s3.names(bucket):
        s3.client.delete_object(Bucket=bucket, Key=name)
    monkeypatch.setenv("RAYCNN_CACHE", caches[0])
    (first.folder / ".claim.json").unlink()  # as in a copy that was made by hand
    second = Run.create(job(storage__path=root, optimizer__lr=0.01))
    assert second.location == first.location
    assert second.latest_checkpoint() == (None, []) and not second.rows() and not second.events()
    monkeypatch.setenv("RAYCNN_CACHE", caches[1])
    elsewhere = Run.open(second.location)
    assert elsewhere.latest_checkpoint() == (None, []) and not elsewhere.rows()
    assert elsewhere.job().optimizer.options["lr"] == 0.01


def test_what_uses_a_network_takes_the_latest_run_at_a_uri_that_has_one(job: MakeJob) -> None:
    root = "memory://bucket/latest"
    run = trained(job(storage__path=root, train__epochs=1))
    failed = Run.create(job(storage__path=root))
    assert Run.find("tiny", root, trained=True).location == run.location
    assert Run.find("tiny", root).location == failed.location


def test_a_search_uploads_the_checkpoints_of_trials_that_have_new_ones_alone(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found.tune.yaml").write_text(SEARCH)
    changes = ["storage.path=memory://bucket/searches"]
    search = Search.create(load_search(tmp_path / "found.tune.yaml", changes))
    first, second = (search.trial(key).run for key in search.spec.trials())
    trained_here = train(job(train__epochs=1))
    shutil.copytree(trained_here.folder, first.folder)
    assert search.copy
    asked: list[str] = []
    ask = RemoteFolder.file
    monkeypatch.setattr(
        RemoteFolder,
        "file",
        lambda self, name: asked.append(f"{self.uri}/{name}") or ask(self, name),
    )
    search.copy.upload(None, 0, lambda: None)
    assert f"{search.location}/trials/lenet-000/checkpoints/index.json" in asked
    asked.clear()
    search.copy.upload(None, 0, lambda: None)
    assert not asked, "nothing is new"
    shutil.copytree(trained_here.folder, second.folder)
    search.copy.upload(None, 0, lambda: None)
    assert {uri.split("/trials/")[1].split("/")[0] for uri in asked} == {"lenet-001"}


def test_a_search_whose_uploads_have_failed_trains_no_further(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found.tune.yaml").write_text(SEARCH)
    changes = ["storage.path=memory://bucket/full", "train.epochs=2000"]
    search = Search.create(load_search(tmp_path / "found.tune.yaml", changes))
    assert search.copy
    search.copy.sync_interval_s = 0.05

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the bucket is full")

    monkeypatch.setattr(RemoteFolder, "upload", full)
    with pytest.raises(EnvironmentUnavailable, match="the bucket is full"):
        dispatch.search(search.spec, lambda: search, SilentView())
    (only,) = search.trials()
    assert not only.ended and len(only.rows()) < 2000


SEARCH = """\
name: found
data: {name: digits, limit: 200, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 2, batch_size: 32}
workers: {launcher: local}
tune: {space: {optimizer.lr: {grid: [0.01, 0.05]}}}
"""


def test_a_search_at_a_uri_is_resumed_elsewhere(
    s3: Server, bucket: str, call: Call, tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    (tmp_path / "found.tune.yaml").write_text(SEARCH)
    root = s3.uri(bucket)
    code, _, said = call("tune", "found.tune.yaml", f"storage.path={root}")
    assert code == 0, said
    names = s3.names(bucket)
    assert {"runs/found/1/search.yaml", "runs/found/1/leaderboard.json"} <= {*names}
    assert sum(name.endswith("/checkpoints/index.json") for name in names) == 2

    other_machine()
    code, out, _ = call("list", "runs", "--runs", root)
    assert code == 0 and out.splitlines()[1].split()[:2] == ["found/1", "done"]
    found = Search.find("found", root)
    with found.lock():
        other_machine()
        (elsewhere,) = Search.all(root)
        shutil.rmtree(elsewhere.folder / "trials" / "lenet-001")
        assert elsewhere.state() == "running"
    assert elsewhere.state() == "stopped"
    other_machine()
    code, out, said = call("tune", "--resume", "found", "--runs", root)
    assert code == 0, said
    uri = quote(s3.uri(bucket, "runs/found/1"))
    assert f"next: raycnn tune --resume {uri} --retrain" in out and uri.startswith("'s3://")
    s3.client.delete_object(Bucket=bucket, Key="runs/found/1/report.html")
    assert call("report", "found", "--runs", root)[0] == 0
    assert "runs/found/1/report.html" in s3.names(bucket)
    found = Search.find("found", root)
    assert all(trial.run.weights("last").is_dir() for trial in found.trials())
