"""Population based training, without Ray: trials trained one after another in this process."""

import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raycnn.config.load import load_job
from raycnn.config.search import Domain, load_search
from raycnn.launch import trial
from raycnn.runs.remote import lease
from raycnn.search import leaderboard
from raycnn.search.folder import Search, Trial
from raycnn.search.queue import TrialQueue
from raycnn.training.callbacks import TrialExploited
from tests.support.runs import happened, numbers, same, train, weights
from tests.support.searches import BASE, CPU, run_all

TEXT = """\
tune:
  trials: 4
  seed: 1
  scheduler: {name: pbt, interval: 1, quantile: 0.5}
  pools: [{device: cpu, cpus: 1}]
  space:
    optimizer.lr: {loguniform: [3e-3, 0.3]}
    optimizer.momentum: {choice: [0.0, 0.5, 0.9]}
"""


def made(folder: Path, *changes: str, text: str = TEXT) -> Search:
    path = folder / "tiny.tune.yaml"
    path.write_text(BASE.replace("STORAGE", str(folder)) + text)
    return Search.create(load_search(path, ["data.val=0.3", *changes]))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return run_all(made(tmp_path_factory.mktemp("done")))


def said(search: Search) -> list[Any]:
    """All that there is to know, but for the time that it took."""
    return [
        (
            {k: v for k, v in one.info.items() if k != "wall_s"},
            one.run.job().stages,
            numbers(one.run),
            {key: tensor.tolist() for key, tensor in weights(one.run).items()},
        )
        for one in search.trials()
    ]


def exploited(search: Search) -> list[Trial]:
    return [one for one in search.trials() if one.run.job().stages]


def test_the_worst_of_a_generation_copy_the_best(done: Search) -> None:
    entries = {entry.trial: entry for entry in leaderboard.write_leaderboard(done)}
    assert {(entry.state, entry.epochs) for entry in entries.values()} == {("done", 3)}
    assert [len(one.info["scores"]) for one in done.trials()] == [2] * 4, "after epochs 1 and 2"
    ranked = sorted(done.trials(), key=lambda one: -one.info["scores"][1])
    best, worst = {one.id for one in ranked[:2]}, ranked[2:]
    assert {one.info["scores"][1] for one in worst}.isdisjoint({ranked[0].info["scores"][1]})
    for one in worst:
        (parent,) = [
            name
            for name in best
            if (name, 2) in [(e.parent, e.epoch) for e in happened(one.run, TrialExploited)]
        ]
        of = done.trial(parent)
        assert numbers(one.run)[:2] == numbers(of.run)[:2]
        assert one.run.job().optimizer == of.run.job().optimizer
        assert one.run.job().stages[:-1] == of.run.job().stages
        assert one.run.job().stages[-1].changes == one.info["changes"] != of.info["changes"]
        assert entries[one.id].reason.endswith(f"copied {parent} after 2 epochs")


def test_a_job_trained_alone_repeats_the_whole_lineage_of_its_trial(done: Search) -> None:
    found = leaderboard.write_leaderboard(done)
    assert max(len(one.run.job().stages) for one in done.trials()) == 2
    for one in exploited(done):
        alone = train(one.run.job().change({"storage.path": str(done.folder)}))
        assert numbers(alone) == numbers(one.run) and same(weights(alone), weights(one.run))
    best = done.trial(found[0].trial).run.job()
    assert load_job(done.best_job_path("lenet")).tree() == best.tree()
    assert max(row["val/acc1"] for row in done.trial(found[0].trial).rows()) == found[0].metric


KILLS = [
    pytest.param(shutil, "copytree", 2, id="in the middle of a copy"),
    pytest.param(Trial, "update", 3, id="with half of the scores noted"),
    pytest.param(Trial, "update", 6, id="with half of the members changed"),
    pytest.param(trial, "fit", 6, id="in the middle of a generation"),
]


@pytest.mark.parametrize(("owner", "name", "call"), KILLS)
def test_killed_anywhere_it_resumes_to_the_same(
    done: Search,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
) -> None:
    class Killed(BaseException):
        pass

    real, calls = getattr(owner, name), 0

    def fatal(*args: Any, **named: Any) -> Any:
        nonlocal calls
        if name != "update" or {"scores", "generation"} & named.keys():
            calls += 1
        if calls == call:
            raise Killed
        return real(*args, **named)

    search = made(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, fatal)
        run_all(search)
        pytest.fail("it was never called so often")
    assert said(run_all(Search(search.folder))) == said(done)


KILLED = """
import os, sys
from raycnn.cli import main
from raycnn.filesystem import RemoteFolder
from raycnn.runs.remote.working_copy import SearchCopy
from raycnn.search import queue

where, *sys.argv[1:] = sys.argv[1:]
next_trials, upload, push_files = queue.next_trials, RemoteFolder.upload, SearchCopy.push_files
copied = False

def uploaded(search):
    search.flush()
    assert search.copy.wait(60)

def kill_after_copies(search, *running):
    global copied
    uploaded(search)
    found = next_trials(search, *running)
    copied = any(trial.run.job().stages for trial in search.trials())
    if copied:
        uploaded(search) if where != "upload" else os.kill(os.getpid(), 9)
    return found

def kill_after_files(self, *included):
    push_files(self, *included)
    if copied and where == "checkpoints":
        os.kill(os.getpid(), 9)

def kill_in_an_upload(self, source, name):
    file = upload(self, source, name)
    last = "metrics.csv" if where == "metrics" else "model.safetensors"
    if copied and name.endswith(last):
        os.kill(os.getpid(), 9)
    return file

queue.next_trials, RemoteFolder.upload = kill_after_copies, kill_in_an_upload
SearchCopy.push_files = kill_after_files
main()
"""


@pytest.mark.parametrize("where", ["upload", "metrics", "checkpoints", "middle"])
def test_killed_before_copies_are_uploaded_it_resumes_to_the_same_on_any_machine(
    done: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Killed before the upload, between two files of a member, before its checkpoint, and in it."""
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))
    storage, file = f"local://{tmp_path}/far", tmp_path / "tiny.tune.yaml"
    workers = "workers: {launcher: local, device: cpu}\n"
    file.write_text(BASE.replace("STORAGE", storage) + workers + TEXT)
    tune = ["tune", str(file), "data.val=0.3"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, *tune], cwd=tmp_path, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    monkeypatch.setattr(lease, "LEASE_S", 1.0)  # what was killed holds it until it runs out
    shutil.move(tmp_path / "far", tmp_path / "killed")
    for machine in ("cache", "another"):
        monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / machine))
        shutil.copytree(tmp_path / "killed", tmp_path / "far")
        time.sleep(1)
        search = Search.find(f"{storage}/tiny/1")
        with search.lock():
            run_all(search)
        assert said(search) == said(done)
        shutil.rmtree(tmp_path / "far")


def test_a_member_that_fails_leaves_the_population(tmp_path: Path) -> None:
    text = (
        "tune: {scheduler: {name: pbt, interval: 1}, space: {optimizer.lr: {grid: [0.1, 1e30]}}}\n"
    )
    search = run_all(made(tmp_path, "train.epochs=2", text=text))
    good, bad = search.trials()
    assert (good.info["state"], bad.info["state"]) == ("done", "failed")
    assert good.run.job().stages == [] and "scores" not in bad.info


def test_of_a_trial_that_has_ended_the_best_and_the_last_checkpoint_are_kept(done: Search) -> None:
    for one in done.trials():
        kept = {path.name for path in one.run.checkpoints.iterdir() if path.is_dir()}
        assert kept == {one.run.weights(which).name for which in ("best", "last")}


@pytest.mark.parametrize(
    ("domain", "value", "near"),
    [
        (Domain(loguniform=[0.01, 1.0]), 0.1, {0.08, 0.12}),
        (Domain(uniform=[0.0, 1.0]), 0.9, {0.72, 1.0}),
        (Domain(randint=[1, 20]), 10, {8, 12}),
        (Domain(randint=[0, 4]), 2, {1, 3}),
        (Domain(randint=[0, 4]), 0, {0, 1}),
        (Domain(uniform=[0.0, 0.5]), 0.0, {0.0, 0.05}),
        (Domain(uniform=[-1.0, 1.0]), 0.0, {-0.2, 0.2}),
        (Domain(choice=[None, 1.0, 5.0]), 1.0, {None, 5.0}),
        (Domain(choice=[None, 1.0, 5.0]), None, {1.0}),
        (Domain(grid=[0.1, 0.2]), 0.2, {0.1}),
        (Domain(choice=[0.1]), 0.1, {0.1}),
    ],
)
def test_a_setting_is_perturbed_to_a_value_near_it(
    domain: Domain, value: Any, near: set[Any]
) -> None:
    assert {domain.perturb(value, u) for u in (0.0, 0.3, 0.7, 0.999)} == near


def test_some_settings_are_drawn_anew(tmp_path: Path) -> None:
    """With resample 1 a rate that no member had is everywhere in its range."""
    search = made(tmp_path, "tune.scheduler.resample=1", "train.epochs=2")
    run_all(search)
    changed = [one.info["changes"]["optimizer.lr"] for one in exploited(search)]
    firsts = [one.run.job().optimizer.options["lr"] for one in exploited(search)]
    ratios = [now / first for now, first in zip(changed, firsts, strict=True)]
    assert len(changed) == 2 and not {0.8, 1.2} & {round(ratio, 3) for ratio in ratios}


def test_a_generation_ends_when_no_member_is_being_trained(tmp_path: Path) -> None:
    search = made(tmp_path)
    queue = TrialQueue(search)
    members = [queue.take(CPU) for _ in range(4)]
    for member in members:
        work = partial(trial.fit_trial_alone, search, member, torch.device("cpu"), None)
        trial.run_trial(member, work)
    for member in members[:3]:
        queue.complete(member)
    assert not queue.waiting and not any("scores" in member.info for member in members)
    queue.complete(members[3])
    assert len(queue.waiting) == 4 and all("scores" in member.info for member in members)
