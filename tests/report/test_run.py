"""The report of a run: what it says is true, it stands alone, and it never fails a job."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycnn.analysis import evaluate
from raycnn.config.schema import JobSpec
from raycnn.report import page, run
from raycnn.report.history import history_entries
from raycnn.runs.directory import Run
from raycnn.training.callbacks import (
    EpochEnded,
    Resumed,
    StoppedOnRequest,
    TrainingStarted,
    Warned,
    WorkersRestarted,
    format_flops,
)
from tests.support.processes import Call
from tests.support.runs import happened, train

MakeJob = Callable[..., JobSpec]
PNGS = {
    "accuracy",
    "loss",
    "confusion",
    "reliability",
    "coverage",
    "mistakes",
    "samples",
    "augmented",
}
HOSTILE = ["<script>alert(1)</script>", "$\\frac{1$ & \"quoted\" 'name'", "猫 \U0001f33b"]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def addresses(self) -> set[str]:
        """Return what the page would load or lead to."""
        keys = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        return {value or "" for _, a in self.tags for key, value in a.items() if key in keys}


def read(found: Run) -> Page:
    return Page((found.folder / run.FILE).read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two epochs with its report, as every job ends."""
    from raycnn.config.load import job_from_tree
    from tests.support.jobs import TINY

    root = str(tmp_path_factory.mktemp("reported"))
    changes = {"storage.path": root, "storage.report": True, "train.epochs": 2}
    return train(job_from_tree(TINY).change(changes))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a folder of pictures whose classes and files have the worst of names."""
    from raycnn.config.load import job_from_tree
    from tests.support.jobs import TINY

    root = tmp_path_factory.mktemp("hostile")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for k, name in enumerate(HOSTILE):
            folder = root / "pictures" / split / name.replace("/", "∕")
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = numbers.integers(0, 80 * (k + 1), (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}<b onclick='x'>.png")
    one = root / "pictures" / "train" / HOSTILE[1]
    shutil.copy(next(one.iterdir()), root / "pictures" / "test" / HOSTILE[2] / "copy.png")
    job = {
        **TINY,
        "data": {"name": "folder", "path": "pictures", "size": 16, "root": str(root), "val": 0.25},
        "train": {"epochs": 1, "batch_size": 8},
        "storage": {"path": str(root / "runs")},
    }
    return train(job_from_tree(job))


def test_a_page_needs_nothing_from_outside_and_is_small(trained: Run, hostile: Run) -> None:
    for found in (trained, hostile):
        text = (found.folder / run.FILE).read_text()
        assert len(text.encode()) < page.MAX_BYTES
        own = Page(text)
        assert all(a.startswith(("data:image/", "#")) for a in own.addresses())
        assert not re.search(r"url\((?!#|&quot;#)|@import|https?://|[\"'(]//\w", text)
        policy = next(a for tag, a in own.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_verdict_is_the_result(trained: Run) -> None:
    result, text = trained.result() or {}, read(trained).text
    low, high = result["test"]["interval95"]
    assert f"{100 * result['test']['acc1']:.2f} %" in text
    assert f"{page.percent(low)} to {page.percent(high)}".replace("\xa0", " ") in text
    assert "357 of 357 images" in text and f"{result['best_epoch']} of 2" in text
    for split, work in (("train", "step"), ("test", "inference")):
        data, passes = (result[split][key] for key in ("data_ms_per_image", "ms_per_image"))
        assert f"{data:.3g} ms data, {passes:.3g} ms {work}" in text
    (began,) = happened(trained, TrainingStarted)
    assert began.flops and format_flops(began.flops) in text and f"{began.parameters:,}" in text


def test_what_training_is_measured_on_is_said(trained: Run, tmp_path: Path) -> None:
    from raycnn.config.load import job_from_tree
    from tests.support.jobs import TINY

    student = {
        "storage.path": str(tmp_path), "storage.report": True, "train.epochs": 1,
        "train.distillation": {"teacher": str(trained.folder)},
        "data.transforms": [{"name": "resize", "size": 12}, "horizontal_flip"],
    }  # fmt: skip
    text, plain = read(train(job_from_tree(TINY).change(student))).text, read(trained).text
    for words in ("divergence from the teacher", "on augmented images", "augmented as the network"):
        assert words in text and words not in plain


def test_every_class_stands_in_the_table_with_its_numbers(trained: Run) -> None:
    found = evaluate.stored_predictions(trained)
    assert found
    text = read(trained).text
    for row in evaluate.per_class(found.splits["test"], found.classes):
        assert f"{row['count']} {page.percent(row['recall'], 1)}".replace("\xa0", " ") in text


def test_the_worst_mistakes_are_shown_with_where_the_network_looked(trained: Run) -> None:
    found = evaluate.stored_predictions(trained)
    assert found
    wrong = int((found.splits["test"].predicted != found.splits["test"].labels).sum())
    images = [a["alt"] or "" for tag, a in read(trained).tags if tag == "img"]
    mistakes = [alt for alt in images if alt.startswith("label ")]
    assert len(mistakes) == 2 * min(wrong, run.MAX_MISTAKES), "each with its Grad-CAM"
    assert sum("Grad-CAM" in alt for alt in mistakes) == len(mistakes) // 2


def test_random_test_images_are_shown_right_and_wrong(trained: Run) -> None:
    images = [a["alt"] or "" for tag, a in read(trained).tags if tag == "img"]
    drawn = [alt for alt in images if alt.startswith("random, ")]
    assert len(drawn) == run.MAX_SAMPLES
    run.write_from_folder(trained)
    again = [a["alt"] or "" for tag, a in read(trained).tags if tag == "img"]
    assert [alt for alt in again if alt.startswith("random, ")] == drawn, "the seed draws them"


def test_pictures_lie_beside_the_page(trained: Run) -> None:
    there = {path.stem for path in trained.folder.glob("*.png")}
    assert there >= PNGS
    for path in trained.folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_hostile_names_are_text(hostile: Run) -> None:
    own = read(hostile)
    scripts = [a for tag, a in own.tags if tag == "script"]
    assert len(scripts) == 1, "the page's own"
    assert not any(key.startswith("on") for _, a in own.tags for key in a)
    for name in HOSTILE:
        assert name.replace("/", "∕") in own.text
    assert "<b onclick='x'>" in own.text


def test_an_image_in_two_splits_is_shown_beside_its_copy(hostile: Run) -> None:
    own = read(hostile)
    assert "leak , equal pixels" in own.text and f"test {HOSTILE[2]}" in own.text
    assert "copy.png" in own.text and "1 image is also in another split" in own.text
    pairs = {a["alt"] for tag, a in own.tags if tag == "img" and a["alt"]}
    assert f"test {HOSTILE[2]}" in pairs and pairs & {f"train {HOSTILE[1]}", f"val {HOSTILE[1]}"}


def test_settings_that_are_not_default_are_told_apart(trained: Run) -> None:
    text = read(trained).text
    changed, _, others = text.partition("at their defaults")
    assert "optimizer.lr 0.05" in changed and "train.epochs 2" in changed
    assert "train.precision fp32" in others and "train.precision" not in changed


def test_a_report_without_data_says_so_and_shows_the_rest(
    job: MakeJob, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(job(train__epochs=1))
    assert not (trained.folder / run.FILE).exists(), "storage.report is false"

    def gone(*_: object) -> None:
        from raycnn.errors import DataError

        raise DataError("the pictures are gone")

    monkeypatch.setattr(run.evaluate, "open_splits", gone)
    run.write_from_folder(trained)
    own = read(trained)
    assert "the report has no images: the pictures are gone" in caplog.text
    assert "the pictures are gone" in own.text and "Confusion matrix" in own.text
    assert not any(tag == "img" for tag, _ in own.tags)


def test_an_unfinished_run_has_a_report(job: MakeJob) -> None:
    untrained = Run.create(job())
    run.write_from_folder(untrained)
    assert "no test yet" in read(untrained).text
    with pytest.raises(Exception, match="stopped"):
        train(job(), untrained, stop_at=8)
    run.write_from_folder(untrained)
    text = read(untrained).text
    assert "after 1 epochs" in text and "raycnn resume" in text


def test_a_report_that_fails_is_an_event_and_no_failure(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such color")

    monkeypatch.setattr(run, "_values", fail)
    trained = train(job(train__epochs=1, storage__report=True))
    assert trained.result() and trained.state() == "done"
    assert any("no such color" in event.text for event in happened(trained, Warned))
    assert not (trained.folder / run.FILE).exists()


def test_events_are_marked_at_their_epochs(job: MakeJob) -> None:
    trained = Run.create(job())
    for event in (
        EpochEnded(metrics={"epoch": 4.0}),
        WorkersRestarted(error="killed", cause="lost", retry=1, retries=2),
        Resumed(epoch=3, step=0),
        Warned(text="a warning"),
    ):
        trained.add_event(event)
    found = [(h.mark, h.epoch, h.serious) for h in history_entries(trained)]
    assert found == [("worker lost", 3, True), ("resumed", 3, False), ("", 3, False)]


def test_several_events_of_an_epoch_share_a_mark(trained: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(trained.folder, tmp_path / "1")))
    copy.add_event(StoppedOnRequest(epoch=1, step=2))
    copy.add_event(Resumed(epoch=1, step=2))
    run.write_report(copy, None, None)
    assert read(copy).words.count("stopped, resumed") == 2, "on each of two curves"


def test_a_page_that_is_too_large_goes_without_its_images(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (trained.folder / run.FILE).stat().st_size
    monkeypatch.setattr(page, "MAX_BYTES", whole - 1)
    run.write_from_folder(trained)
    own = read(trained)
    assert not any(tag == "img" for tag, _ in own.tags) and "too large" in own.text


def test_many_classes_are_cut_to_the_worst(
    job: MakeJob, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MAX_MATRIX_CLASSES", 5)
    monkeypatch.setattr(run, "MAX_TABLE_CLASSES", 4)
    trained = train(job(train__epochs=1))
    assert call("report", trained.folder)[0] == 0
    text = read(trained).text
    assert "Most confused" in text and "The 4 classes of the lowest recall, of 10" in text
