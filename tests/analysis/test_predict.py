import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycnn.analysis import predict as predicting
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.sources.digits import Digits
from raycnn.data.splits import open_splits
from raycnn.errors import DataError
from raycnn.runs.directory import Run
from tests.support.images import write_pictures
from tests.support.jobs import TINY
from tests.support.processes import Call
from tests.support.runs import train

MakeJob = Callable[..., JobSpec]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {"data.limit": None, "train.epochs": 8, "model.pool": "max"}
    storage = {"storage.path": str(tmp_path_factory.mktemp("runs"))}
    return train(job_from_tree(TINY).change(changes | storage))


def test_pictures_are_named_as_the_test_counted_them(run: Run, tmp_path: Path, call: Call) -> None:
    """All test images, as files, in a folder whose name is no plain word, from the run folder alone."""
    test = Digits().read()["test"]
    folder = tmp_path / "手写 digits 🖐"
    for row, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        path = folder / str(label) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    moved = shutil.copytree(run.folder, tmp_path / "alone")
    code, out, err = call("predict", moved, folder, "--json", "--top", "1")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
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
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    store = open_splits(run.job()).cache.splits["test"]
    paths = [top / store.name(row) for row in range(6)]
    predicted = [said for _, said in predicting.predict(network, [(str(p), p) for p in paths])]
    trained = torch.from_numpy(store.images[np.arange(6)]).permute(0, 3, 1, 2)
    assert torch.equal(torch.stack(predicted), network(trained)[0])


def test_what_is_no_picture_is_named_and_the_others_are_done(
    run: Run, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "color.png")
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(folder / "large.jpg")
    (folder / "page.jpg").write_text("<html>")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:200])
    (folder / ".DS_Store").write_text("x")
    (folder / "notes.txt").write_text("x")
    code, out, err = call("predict", run.folder, folder)
    assert code == 4
    assert len(out.splitlines()) == 2
    for name in ("page.jpg", "empty.png", "cut.jpg"):
        assert name in err


def test_probabilities_are_the_largest_first_and_at_most_all(
    run: Run, tmp_path: Path, call: Call
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    _, out, _ = call("predict", run.folder, "black.png", "--json", "--top", "99")
    shares = list(json.loads(out)["classes"].values())
    assert len(shares) == 10 and shares == sorted(shares, reverse=True)
    assert abs(sum(shares) - 1) < 1e-5


@pytest.mark.parametrize(
    ("words", "said"), [(["nowhere.png"], "does not exist"), (["."], "no pictures in .")]
)
def test_nothing_to_look_at_is_said(run: Run, call: Call, words: list[str], said: str) -> None:
    code, _, err = call("predict", run.folder, *words)
    assert code == 4 and said in err


def test_a_picture_is_the_same_as_a_file_an_image_and_an_array(run: Run, tmp_path: Path) -> None:
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    pixels = Digits().read()["test"].images[:3, ..., 0]
    files = [tmp_path / f"{row}.png" for row in range(3)]
    for file, one in zip(files, pixels, strict=True):
        Image.fromarray(one).save(file)
    ways = [
        files,
        str(tmp_path),
        [Image.open(file) for file in files],
        list(pixels),
        pixels[..., None],
    ]
    answers = [[p.probabilities for p in network.predict(way)] for way in ways]
    assert len(answers[0]) == 3 and all(answer == answers[0] for answer in answers)
    first = network.predict(files[0])[0]
    assert first.source == str(files[0]) and first.label == max(
        answers[0][0], key=answers[0][0].get
    )


def test_a_folder_has_the_pictures_that_training_finds(run: Run, tmp_path: Path) -> None:
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    pictures = write_pictures(tmp_path / "pictures", ["a", ".thumbs"], 2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b").symlink_to(pictures / "a")
    for folder, found in ((pictures, "a"), (tmp_path / "linked", "b")):
        names = [prediction.source for prediction in network.predict(folder)]
        assert names == [str(folder / found / f"{number}.png") for number in range(2)]


def test_pictures_of_every_mode_are_taken_from_memory(run: Run) -> None:
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    gray = Image.fromarray(Digits().read()["test"].images[0, ..., 0])
    (expected,) = network.predict(gray)
    for mode in ("RGB", "RGBA", "RGBX", "LA", "P", "PA", "YCbCr"):
        (prediction,) = network.predict(gray.convert("RGB").convert(mode))
        assert prediction.label == expected.label, mode
    pixels = torch.from_numpy(np.asarray(gray.convert("RGB")).copy())
    assert network.predict(pixels)[0].probabilities == expected.probabilities


def test_what_is_no_picture_is_refused_as_data(run: Run) -> None:
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    closed = Image.new("L", (8, 8))
    closed.close()
    with pytest.raises(DataError, match="cannot be read"):
        network.predict(closed)
    with pytest.raises(DataError, match="mode F"):
        network.predict(Image.new("F", (8, 8)))
    first_axis = np.zeros((3, 8, 8), np.uint8)
    for wrong in (np.zeros((8, 8)), np.zeros((8, 8, 7), np.uint8), first_axis, "nowhere.png"):
        with pytest.raises(DataError):
            network.predict(wrong)


def test_a_color_picture_of_one_row_of_pixels_stays_in_color(run: Run, tmp_path: Path) -> None:
    network = predicting.load_network(run.weights("best"), torch.device("cpu"))
    row = np.random.default_rng(0).integers(0, 256, (1, 60, 3)).astype(np.uint8)
    Image.fromarray(row).save(tmp_path / "row.png")
    of_file, of_array = network.predict(str(tmp_path / "row.png")), network.predict(row)
    assert of_file[0].probabilities == of_array[0].probabilities
