"""A build of the image cache that is killed goes on the next time, and gives what it would have."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from raycnn.data.images import build, partial
from raycnn.data.images import cache as image_cache
from raycnn.data.images.cache import CacheMode, ImageCache, open_cache
from raycnn.data.sources.base import Source
from raycnn.errors import DataError
from tests.support.images import png, source, write_pictures

IMAGES = 80
KILLED = """
import os, signal, sys
from pathlib import Path
from raycnn.data.images import build, partial
from tests.data.images.test_build import open_pictures
build.RECORD_S, build.CHUNK_IMAGES, build.PROGRESS_S = -1, 7, -1
kill_at = int(sys.argv[3])
open_pictures(Path(sys.argv[1]), sys.argv[2],
    progress=lambda count, total: count < kill_at or os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_cache(tmp_path / "cache", monkeypatch)


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCNN_CACHE", str(folder))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of which some cannot be read, and others are converted."""
    top = write_pictures(tmp_path / "pictures", ["a", "b"], IMAGES // 2, (9, 7))
    for number in (0, 3, 18, 39):
        (top / "a" / f"{number}.png").write_text("<html>")
        (top / "b" / f"{number}.png").write_bytes(png((9, 7), 90 + number, "L"))
        (top / "b" / f"{(number + 5) % 40}.png").write_bytes(png((9, 7), number, "RGBA"))
    return top


def pictures_of(top: Path) -> Source:
    return source("folder", top, size=[6, 8])


def open_pictures(top: Path, mode: CacheMode = "store", **more: object) -> ImageCache:
    return open_cache("folder", pictures_of(top), {}, mode=mode, max_bad=4, **more)


def kill_a_build(top: Path, mode: CacheMode, after: int) -> None:
    """Build in another process, which is killed when it has decoded so many images."""
    command = [sys.executable, "-c", KILLED, str(top), mode, str(after)]
    assert subprocess.run(command).returncode == -signal.SIGKILL


def files(cache: Path) -> dict[str, bytes]:
    """The content of all files in the cache, but the locks."""
    found = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def files_of_one_build(cache: Path, monkeypatch: pytest.MonkeyPatch, top: Path) -> dict[str, bytes]:
    """The files of a cache that is built at once."""
    use_cache(cache, monkeypatch)
    open_pictures(top)
    return files(cache)


@pytest.mark.parametrize("mode", ["store", "stream"])
@pytest.mark.parametrize("after", [1, 30, IMAGES])
def test_a_killed_build_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path, mode: CacheMode, after: int
) -> None:
    use_cache(tmp_path / "unbroken", monkeypatch)
    unbroken = open_pictures(pictures, mode)
    assert len(unbroken.unreadable) == 4 and len(unbroken.warnings) == 2

    cache = use_cache(tmp_path / "cache", monkeypatch)
    kill_a_build(pictures, mode, after)
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]
    monkeypatch.setattr(build, "PROGRESS_S", -1)
    monkeypatch.setattr(build, "CHUNK_IMAGES", 1)
    told: list[int] = []
    assert open_pictures(pictures, mode, progress=lambda *now: told.append(now[0]))
    assert min(told) > after - 7  # only the chunk of the kill is decoded again
    assert files(cache) == files(tmp_path / "unbroken")


def test_a_build_that_is_killed_again_and_again_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    cache = use_cache(tmp_path / "cache", monkeypatch)
    for after in (20, 40, 60):
        kill_a_build(pictures, "store", after)
    open_pictures(pictures)
    broken = files(cache)
    assert broken == files_of_one_build(tmp_path / "unbroken", monkeypatch, pictures)


def test_a_partial_build_of_other_content_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    cache = use_cache(tmp_path / "cache", monkeypatch)
    kill_a_build(pictures, "store", 40)
    Image.new("RGB", (9, 7), (1, 2, 3)).save(pictures / "a" / "1.png")
    open_pictures(pictures)
    broken = files(cache)
    assert broken == files_of_one_build(tmp_path / "unbroken", monkeypatch, pictures)


def test_a_partial_build_of_other_pictures_is_kept(own_cache: Path, pictures: Path) -> None:
    kill_a_build(pictures, "store", 40)
    others = write_pictures(pictures.parent / "others", ["a", "b"], 10)
    open_pictures(others)
    (left,) = (path for path in own_cache.glob(".*") if path.is_dir())
    open_pictures(pictures)
    assert not left.exists()


def test_a_partial_build_of_another_version_of_pillow_is_not_used(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_build(pictures, "store", 40)
    monkeypatch.setitem(partial.VERSIONS, "pillow", "1.0")
    told: list[int] = []
    monkeypatch.setattr(build, "PROGRESS_S", -1)
    monkeypatch.setattr(build, "CHUNK_IMAGES", 7)
    open_pictures(pictures, progress=lambda *now: told.append(now[0]))
    assert told[0] == 7


@pytest.mark.parametrize("now", ["stream", "store"])
def test_a_partial_build_with_images_is_no_build_without(
    own_cache: Path, pictures: Path, now: CacheMode
) -> None:
    kill_a_build(pictures, "store" if now == "stream" else "stream", 40)
    cache = open_pictures(pictures, now)
    stored = {path for path in files(own_cache) if path.endswith("images.npy")}
    assert bool(stored) == (now == "store") and len(cache.splits["train"].labels) > 50


def test_images_that_fit_with_the_partial_build_that_holds_some_are_stored(
    own_cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_build(pictures, "store", 60)
    written = sum(path.stat().st_size for path in own_cache.rglob("images.npy"))
    size = IMAGES * 6 * 8 * 3
    usage = type("Usage", (), {"free": image_cache.MIN_FREE_BYTES + size - written})
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    open_pictures(pictures, "auto")
    assert list(own_cache.rglob("images.npy"))


def test_a_build_that_fails_starts_anew(own_cache: Path, pictures: Path) -> None:
    kill_a_build(pictures, "store", 40)
    with pytest.raises(DataError, match="images that cannot be read: 4;"):
        open_cache("folder", pictures_of(pictures), {}, mode="store")
    assert not files(own_cache)
