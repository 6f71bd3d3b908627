"""raycnn as a library: what a notebook or a script calls."""

import asyncio
import doctest
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import raycnn
from raycnn import api
from raycnn.errors import DataError, RaycnnError, SpecError
from tests.support.images import write_pictures
from tests.support.jobs import TINY
from tests.support.runs import numbers
from tests.support.s3 import Server
from tests.support.searches import BASE as SPEC

SMALL: dict[str, Any] = {"train.epochs": 1, "workers.device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> raycnn.Run:
    root = tmp_path_factory.mktemp("runs")
    return raycnn.train(TINY, progress=False, storage__path=str(root), **SMALL)


def test_importing_raycnn_takes_neither_torch_nor_ray_nor_pandas() -> None:
    probe = "import sys, raycnn; sys.exit(bool({'torch', 'ray', 'pandas', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_every_public_name_is_there_and_documented() -> None:
    for name in raycnn.__all__:
        assert name in dir(raycnn)
        assert name == "__version__" or getattr(raycnn, name).__doc__


@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_the_docstrings_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(
        api, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert tried > 5 and not failed


def test_a_run_shows_what_it_came_to(trained: raycnn.Run) -> None:
    assert trained.state == "done" and trained.job.train.epochs == 1
    assert list(trained.metrics["epoch"]) == [1.0]
    assert trained.result["test"]["count"] == 357
    page = trained._repr_html_()
    assert "tiny/1" in page and "357" in page
    assert trained.evaluate("test")["test"]["acc1"] == trained.result["test"]["acc1"]
    with pytest.raises(SpecError, match="unknown split 'dev'"):
        trained.evaluate("dev")
    with pytest.raises(SpecError, match="train.class_weights: must be `balanced`, or a list"):
        raycnn.load(trained.job, train__class_weights=np.ones(10))
    tested = trained.predictions.query("split == 'test'")
    hits = (tested["label"] == tested["predicted"]).sum()
    assert (
        hits / len(tested) == trained.result["test"]["acc1"]
        and tested["label"].iloc[0] in "0123456789"
    )


def test_metrics_are_plain_rows_without_pandas(
    trained: raycnn.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [row["epoch"] for row in trained.metrics] == [1.0]


def test_runs_are_listed_by_a_function_named_like_their_package(trained: raycnn.Run) -> None:
    import raycnn.runs.directory  # noqa: F401

    assert [run.name for run in raycnn.runs(trained.folder.parent.parent)] == ["tiny/1"]


def test_a_network_classifies_files_images_and_arrays(trained: raycnn.Run, tmp_path: Path) -> None:
    network = trained.network("best", device="cpu")
    assert network.classes == tuple("0123456789")
    assert network.preprocessing["size"] == [8, 8] and len(network.preprocessing["mean"]) == 1
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answers = [
        network.predict(x)[0].probabilities
        for x in (tmp_path / "a.png", Image.fromarray(pixels), pixels)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert (
        raycnn.open_network(trained.folder, device="cpu").predict(pixels)[0].probabilities
        == answers[0]
    )


def test_a_network_is_that_of_the_latest_run_that_has_one(
    trained: raycnn.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shutil.copytree(trained.folder, tmp_path / "runs" / "tiny" / "1")
    (first.with_name("2")).mkdir()
    shutil.copy(first / "job.yaml", first.with_name("2"))
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((8, 8), np.uint8)
    assert raycnn.open_network("tiny").predict(pixels) == trained.predict(pixels)


def test_a_resumed_run_equals_an_unbroken_one(trained: raycnn.Run, tmp_path: Path) -> None:
    roots = {"storage.path": str(tmp_path), "workers.device": "cpu"}
    longer = raycnn.train(TINY, progress=False, **roots, train__epochs=2)
    again = raycnn.train(TINY, progress=False, **roots, train__epochs=1, schedule="constant")
    assert again.resume(progress=False).folder == again.folder  # done: nothing to do
    gone_on = raycnn.resume(again, progress=False, train__epochs=2)
    unbroken = raycnn.train(TINY, progress=False, **roots, train__epochs=2, schedule="constant")
    assert numbers(gone_on._run)[1]["val/loss"] == numbers(unbroken._run)[1]["val/loss"]
    assert len(longer.metrics) == 2


def test_a_folder_of_pictures_is_a_job(tmp_path: Path) -> None:
    top = write_pictures(tmp_path / "pics", ["a", "b"], 6, (16, 16))
    job = raycnn.load(top, train__epochs=3)
    assert job.train.epochs == 3 and job.data.root == str(top)


def test_it_trains_in_a_running_event_loop_and_in_another_thread(tmp_path: Path) -> None:
    done: list[raycnn.Run] = []

    async def in_a_loop() -> None:
        done.append(raycnn.train(TINY, progress=False, storage__path=str(tmp_path), **SMALL))

    asyncio.run(in_a_loop())
    thread = threading.Thread(target=lambda: asyncio.run(in_a_loop()))
    thread.start()
    thread.join(120)
    assert [run.state for run in done] == ["done", "done"]
    assert numbers(done[0]._run) == numbers(done[1]._run)


def test_a_search_at_a_uri_is_run_continued_and_its_best_trained(
    s3: Server, tmp_path: Path
) -> None:
    uri = s3.uri(s3.bucket())
    file = tmp_path / "tiny.tune.yaml"
    tune = "tune: {space: {optimizer.lr: {grid: [0.0001, 0.05]}}}\n"
    file.write_text(SPEC.replace("{path: STORAGE}", f"{{path: '{uri}'}}") + tune)
    found = raycnn.tune(file, progress=False, workers__launcher="local", train__epochs=1)
    assert found.state == "done" and [*found.leaderboard["state"]] == ["done", "done"]
    with pytest.raises(SpecError, match="continues as it is: leave out train.epochs"):
        raycnn.tune(found.location, progress=False, train__epochs=2)
    again = raycnn.tune(raycnn.Search("tiny", uri).location, progress=False)
    assert again.location == found.location and found.name in again._repr_html_()
    best = raycnn.train(again.best["lenet"], progress=False, storage__path=str(tmp_path))
    assert max(best.metrics["val/acc1"]) == found.leaderboard["metric"][0]


def test_a_run_at_a_uri_is_that_of_a_folder(
    trained: raycnn.Run, s3: Server, tmp_path: Path
) -> None:
    uri = s3.uri(s3.bucket())
    there = raycnn.train(TINY, progress=False, storage__path=uri, **SMALL)
    assert numbers(there._run) == numbers(trained._run)
    assert [run.location for run in raycnn.runs(uri)] == [there.location]
    there = raycnn.Run(there.name, uri)
    assert there.evaluate("test") == trained.evaluate("test")
    image = np.zeros((12, 12), np.uint8)
    (here,), (away,) = trained.network().predict(image), there.network().predict(image)
    assert here == away
    exported = there.export("safetensors", tmp_path / "exported")
    assert raycnn.open_network(exported.folder).predict(image) == [away]


def test_errors_are_raycnns_own(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="epochs"):
        raycnn.load(TINY, train__epoch=3)
    with pytest.raises(SpecError):
        raycnn.Run("nowhere", tmp_path)
    with pytest.raises(DataError):
        raycnn.train(TINY, progress=False, data={"name": "folder", "root": str(tmp_path)})
    with pytest.raises(RaycnnError):
        raycnn.tune(tmp_path / "none.tune.yaml")


@pytest.mark.ray
@pytest.mark.slow
def test_several_workers_train_on_ray_in_a_running_event_loop(tmp_path: Path) -> None:
    """In a process of its own, as a notebook's kernel is: it imports torch before Ray starts."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, raycnn, torch\n"
        "async def main():\n"
        f"    run = raycnn.train({TINY!r}, workers__count=2, workers__device='cpu', train__epochs=1)\n"
        "    print(run.state, run.result['test']['count'])\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done 357"
