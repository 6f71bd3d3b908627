import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raycnn.data.images import build
from raycnn.data.images import cache as image_cache
from raycnn.data.images.cache import open_cache
from raycnn.data.images.decode import BadImage, Decoded
from raycnn.data.sources.base import Split
from raycnn.data.sources.digits import Digits
from raycnn.errors import DataError, EnvironmentUnavailable
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
    first, second = (open_cache("noise", source, {}) for _ in range(2))
    assert source.reads == 1
    assert np.array_equal(first.splits["train"].images, second.splits["train"].images)
    assert first.classes == ("a", "b") and first.shape == Shape(3, 4, 5)


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    source = Noise(tmp_path / "file")
    open_cache("noise", source, {})
    source.file.write_text("more")
    open_cache("noise", source, {})
    assert source.reads == 2


def test_a_file_that_was_edited_without_a_change_of_size_is_decoded_anew(tmp_path: Path) -> None:
    source = Noise(tmp_path / "file")
    for number, text in enumerate(["one", "two"]):
        source.file.write_text(text)
        os.utime(source.file, (number, number))
        open_cache("noise", source, {})
    assert source.reads == 2


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    one, other = Noise(tmp_path / "one"), Noise(tmp_path / "other")
    more = Noise(tmp_path / "more", 11)
    prints = [open_cache("noise", source, {}).fingerprint for source in (one, other, more)]
    assert prints[0] == prints[1] != prints[2]


def test_the_sums_are_of_each_image_and_channel(tmp_path: Path) -> None:
    train = open_cache("noise", Noise(tmp_path / "file"), {}).splits["train"]
    pixels = train.images.reshape(len(train.images), -1, train.images.shape[-1]).astype(float)
    assert (train.sums[:, 0] == pixels.sum(1)).all()
    assert (train.sums[:, 1] == (pixels**2).sum(1)).all()


def test_the_hashes_tell_images_apart_and_know_the_same(tmp_path: Path) -> None:
    splits = open_cache("noise", Noise(tmp_path / "file"), {}).splits
    assert len(set(splits["train"].hashes.tolist())) == 10
    assert (splits["train"].hashes == splits["test"].hashes).all()


def test_images_are_decoded_in_chunks_that_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Watched(Noise):
        def read(self) -> dict[str, Split]:
            splits = super().read()
            return {k: Split(_Watching(v.images, asked), v.labels) for k, v in splits.items()}

    whole = open_cache("noise", Noise(tmp_path / "one"), {})
    monkeypatch.setattr(build, "CHUNK_IMAGES", 3)
    chunked = open_cache("noise", Watched(tmp_path / "other"), {})
    assert max(asked) == 3
    assert chunked.fingerprint == whole.fingerprint
    assert (chunked.splits["test"].images == whole.splits["test"].images).all()
    assert (chunked.splits["test"].sums == whole.splits["test"].sums).all()


class _Watching:
    """Images that note how many are asked for at once, and of which some cannot be read."""

    def __init__(self, images: object, asked: list[int], bad: tuple[int, ...] = ()):
        self.images, self.asked, self.bad = images, asked, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(len(rows))
        return self.images[rows]


class _Spoilt(_Watching):
    """Images of which some cannot be read, and the others had to be converted."""

    def decode(self, rows: np.ndarray) -> list[Decoded | BadImage]:
        return [
            BadImage(f"image {row} is bad")
            if row in self.bad
            else Decoded(self.images[row], ("images made up",))
            for row in rows.tolist()
        ]


class Spoilt(Noise):
    """Of 40 train images 12 cannot be read."""

    bad = tuple(range(5, 29, 2))

    def __init__(self, file: Path):
        super().__init__(file, 40)

    def read(self) -> dict[str, Split]:
        splits = super().read()
        train = splits["train"]
        names = np.array([f"{row}.png".encode() for row in range(40)])
        spoilt = Split(_Spoilt(train.images, [], self.bad), train.labels, names)
        return splits | {"train": spoilt}


def test_bad_images_are_left_out_as_many_as_may_be(tmp_path: Path) -> None:
    source = Spoilt(tmp_path / "file")
    cache = open_cache("spoilt", source, {}, max_bad=12)
    good = [row for row in range(40) if row not in source.bad]
    train, whole = cache.splits["train"], Noise(tmp_path / "file", 40).read()["train"]
    assert cache.unreadable == [f"image {row} is bad" for row in source.bad]
    assert cache.warnings == ["28 images made up"]
    assert (train.images == whole.images[good]).all() and (train.labels == whole.labels[good]).all()
    assert [train.name(i) for i in range(28)] == [f"{row}.png" for row in good]
    assert len(train.sums) == len(train.hashes) == 28
    unnamed = replace(train, names=None)
    assert [unnamed.name(i) for i in range(28)] == [f"row {row}" for row in good]


@pytest.mark.parametrize("built_before", [False, True])
def test_more_bad_images_than_may_be_are_counted_and_the_first_ten_named(
    tmp_path: Path, built_before: bool
) -> None:
    source = Spoilt(tmp_path / "file")
    if built_before:
        open_cache("spoilt", source, {}, max_bad=99)
    with pytest.raises(DataError) as caught:
        open_cache("spoilt", source, {}, max_bad=11)
    message = str(caught.value)
    assert "images that cannot be read: 12; data.max_bad allows 11" in message
    assert (
        message.count("is bad") == 10 and "image 5 is bad" in message and "image 25" not in message
    )


def test_who_waits_is_told_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(build, "CHUNK_IMAGES", 4)
    open_cache("noise", Noise(tmp_path / "one"), {}, progress=lambda *now: told.append(now))
    assert told == [(20, 20)]  # not more often than a few times a second
    monkeypatch.setattr(build, "PROGRESS_S", -1)
    two = Noise(tmp_path / "two")
    for _ in range(2):
        open_cache("noise", two, {}, progress=lambda *now: told.append(now))
    assert told[1:] == [(done, 20) for done in (4, 8, 10, 14, 18, 20)]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(DataError, match="split is empty"):
        open_cache("noise", Noise(tmp_path / "file", 0), {})
    assert [path.suffix for path in own_cache.iterdir()] in ([], [".lock"])


def test_processes_that_start_together_decode_once(own_cache: Path) -> None:
    code = (
        "from raycnn.data.images.cache import open_cache; from raycnn.data.sources.digits import Digits;"
        "Digits.read = (lambda read: lambda self: print('decoded') or read(self))(Digits.read);"
        "open_cache('digits', Digits(), {})"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    message = "".join(process.communicate()[0] for process in running)
    assert message.count("decoded") == 1
    assert all(process.returncode == 0 for process in running)
    assert len(open_cache("digits", Digits(), {}).splits["train"].labels) == 1440


def test_a_cache_that_cannot_be_written_is_said_and_where_to_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "a-file"))
    with pytest.raises(EnvironmentUnavailable, match="RAYCNN_CACHE"):
        open_cache("noise", Noise(tmp_path / "file"), {})


def test_a_stream_is_not_told_to_stream_when_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in (tmp_path / "a-file", Path("/proc/raycnn")):
        if cache.parent == tmp_path:
            cache.touch()
        monkeypatch.setenv("RAYCNN_CACHE", str(cache))
        with pytest.raises(EnvironmentUnavailable, match="RAYCNN_CACHE") as caught:
            open_cache("noise", Noise(tmp_path / "file"), {}, mode="stream")
        assert "data.cache" not in str(caught.value)


def test_a_lock_that_another_process_holds_is_waited_for_aloud(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Noise(tmp_path / "file")
    open_cache("noise", source, {})
    (lock,) = own_cache.glob(".noise-*.lock")
    source.file.write_text("other content")
    monkeypatch.setattr("raycnn.io.NOTICE_S", 0.2)
    monkeypatch.setattr(image_cache, "LOCK_S", 0.6)
    hold = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        told: list[str] = []
        with pytest.raises(EnvironmentUnavailable, match=lock.name):
            open_cache("noise", source, {}, on_message=told.append)
        assert len(told) == 1 and lock.name in told[0]
    finally:
        holder.communicate()
    assert len(open_cache("noise", source, {}).splits["train"].labels) == 10


def test_an_image_larger_than_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    source = Noise(tmp_path / "file")
    source.shape = Shape(3, 10**7, 10**7)
    with pytest.raises(DataError, match="3x10000000x10000000"):
        open_cache("noise", source, {})
