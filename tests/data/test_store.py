import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raycnn.data.digits import Digits
from raycnn.data.source import Split
from raycnn.data.store import open_store
from raycnn.errors import DataError, Unfit
from raycnn.shape import Shape


class Noise:
    """A source of random images, that counts how often it is read."""

    shape = Shape(3, 4, 5)
    classes: tuple[str, ...] = ("a", "b")

    def __init__(self, file: Path, count: int = 10):
        self.file, self.count, self.reads = file, count, 0
        file.touch()

    def files(self) -> list[Path]:
        return [self.file]

    def read(self) -> dict[str, Split]:
        self.reads += 1
        images = np.random.default_rng(0).integers(0, 256, (self.count, 4, 5, 3), np.uint8)
        split = Split(images, np.arange(self.count) % 2)
        return {"train": split, "test": split}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_source_is_decoded_once(tmp_path: Path) -> None:
    source = Noise(tmp_path / "file")
    first, second = (open_store("noise", source, {}) for _ in range(2))
    assert source.reads == 1
    assert np.array_equal(first.splits["train"].images, second.splits["train"].images)
    assert first.classes == ("a", "b") and first.shape == Shape(3, 4, 5)


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    source = Noise(tmp_path / "file")
    open_store("noise", source, {})
    source.file.write_text("more")
    open_store("noise", source, {})
    assert source.reads == 2


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    one, other = Noise(tmp_path / "one"), Noise(tmp_path / "other")
    more = Noise(tmp_path / "more", 11)
    prints = [open_store("noise", source, {}).fingerprint for source in (one, other, more)]
    assert prints[0] == prints[1] != prints[2]


def test_the_sums_are_of_each_image_and_channel(tmp_path: Path) -> None:
    train = open_store("noise", Noise(tmp_path / "file"), {}).splits["train"]
    pixels = train.images.reshape(len(train.images), -1, train.images.shape[-1]).astype(float)
    assert (train.sums[:, 0] == pixels.sum(1)).all()
    assert (train.sums[:, 1] == (pixels**2).sum(1)).all()


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(DataError, match="split is empty"):
        open_store("noise", Noise(tmp_path / "file", 0), {})
    assert [path.suffix for path in own_cache.iterdir()] in ([], [".lock"])


def test_processes_that_start_together_decode_once(own_cache: Path) -> None:
    code = (
        "from raycnn.data.store import open_store; from raycnn.data.digits import Digits;"
        "Digits.read = (lambda read: lambda self: print('decoded') or read(self))(Digits.read);"
        "open_store('digits', Digits(), {})"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = "".join(process.communicate()[0] for process in running)
    assert said.count("decoded") == 1
    assert all(process.returncode == 0 for process in running)
    assert len(open_store("digits", Digits(), {}).splits["train"].labels) == 1440


def test_a_cache_that_cannot_be_written_is_said_and_where_to_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "a-file"))
    with pytest.raises(Unfit, match="RAYCNN_CACHE moves it"):
        open_store("noise", Noise(tmp_path / "file"), {})
