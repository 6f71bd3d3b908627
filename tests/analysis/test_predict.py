import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycnn.analysis import predict as predicting
from raycnn.config.schema import JobSpec
from raycnn.data.sources.digits import Digits
from raycnn.data.splits import open_splits
from raycnn.runs.directory import Run
from tests.conftest import raycnn, train
from tests.support.images import write_pictures

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def run(job: MakeJob) -> Run:
    return train(job(data__limit=None, train__epochs=8, model__pool="max"))


def test_pictures_are_named_as_the_test_counted_them(run: Run, tmp_path: Path) -> None:
    """All test images, as files, in a folder whose name is no plain word, from the run folder alone."""
    test = Digits().read()["test"]
    folder = tmp_path / "手写 digits 🖐"
    for row, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        path = folder / str(label) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    moved = run.folder.rename(tmp_path / "alone")
    done = raycnn("predict", moved, folder, "--json", "--top", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    hits = sum(Path(row["path"]).parent.name == next(iter(row["classes"])) for row in rows)
    assert len(rows) == 357
    assert hits / 357 == (Run(moved).result() or {})["test"]["acc1"] > 0.9


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_picture_is_predicted_as_it_was_trained_on(
    job: MakeJob, tmp_path: Path, fit: str
) -> None:
    top = write_pictures(tmp_path / "pictures", ["a", "b"], 6, (40, 20))
    data = {"name": "folder", "root": str(top), "size": 12, "fit": fit, "test": 0.5, "val": 0}
    run = train(job(data=data, train__epochs=1, train__batch_size=6))
    network = predicting.load(run.weights("best"), torch.device("cpu"))
    store = open_splits(run.job()).store.splits["test"]
    paths = [top / store.name(row) for row in range(6)]
    predicted = [said for _, said in predicting.predict(network, paths)]
    trained = torch.from_numpy(store.images[np.arange(6)]).permute(0, 3, 1, 2)
    assert torch.equal(torch.stack(predicted), network.probabilities(trained))


def test_what_is_no_picture_is_named_and_the_others_are_done(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "colour.png")
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(folder / "large.jpg")
    (folder / "page.jpg").write_text("<html>")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:200])
    (folder / ".DS_Store").write_text("x")
    (folder / "notes.txt").write_text("x")
    done = raycnn("predict", run.folder, folder, cwd=tmp_path)
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 2
    assert "3 pictures could not be read" in done.stderr
    for name in ("page.jpg", "empty.png", "cut.jpg"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_probabilities_are_the_largest_first_and_at_most_all(run: Run, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    done = raycnn("predict", run.folder, "black.png", "--json", "--top", "99", cwd=tmp_path)
    shares = list(json.loads(done.stdout)["classes"].values())
    assert len(shares) == 10 and shares == sorted(shares, reverse=True)
    assert abs(sum(shares) - 1) < 1e-5


@pytest.mark.parametrize(
    ("words", "said"), [(["nowhere.png"], "does not exist"), (["."], "no pictures in .")]
)
def test_nothing_to_look_at_is_said(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = raycnn("predict", run.folder, *words, cwd=empty)
    assert done.returncode == 4 and said in done.stderr
