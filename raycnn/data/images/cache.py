"""The image cache: images decoded once per node, memory-mapped, shared by all workers and trials.

Each source has a folder in the cache, keyed by its files' names, sizes and times. It is built under
a lock and a hidden name, where a build that was killed goes on, and renamed when complete. A source
that does not fit on the disk is streamed: the folder holds everything but the images, which are
decoded on every access.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raycnn import io
from raycnn.data.images.build import INDEX, ProgressCallback, build_cache, check_unreadable_limit
from raycnn.data.images.partial import PartialBuild
from raycnn.data.label_arrays import LabelArray
from raycnn.data.sources.base import File, Images, Source, Split, Subset, files_of
from raycnn.errors import EnvironmentUnavailable, StorageUnavailable
from raycnn.paths import cache_folder
from raycnn.shape import Shape

CacheMode = Literal["auto", "store", "stream"]
"""The values of `data.cache`."""
MessageCallback = Callable[[str], None]
"""Called with a message for the user, such as what is being waited for."""

FORMAT = 4  # version of the files in a cache folder; another one is another folder
LOCK_S = 3600  # the longest that another process may take to decode the same source
MIN_FREE_BYTES = 2**30  # disk space that `auto` leaves free


@dataclass(frozen=True)
class CachedSplit:
    """One split of a source: images memory-mapped or decoded on access, all else in memory."""

    images: Images
    """(N, height, width, channels) uint8: a memory-mapped array, or an object that decodes them."""
    labels: LabelArray
    """(N,) int64, or multi-label (N, K) uint8."""
    sums: NDArray[np.uint64]
    """(N, 2, channels): the sum of an image's pixels, and of their squares."""
    hashes: NDArray[np.uint64]
    """(N,): 8-byte BLAKE2b digests of the pixels."""
    names: NDArray[np.bytes_] | None
    """(N,): file names, memory-mapped, where each image is a file."""
    rows: NDArray[np.int64]
    """(N,): the row of each image in the source, where images that cannot be read count too."""

    def name(self, row: int) -> str:
        if self.names is None:
            return f"row {self.rows[row]}"
        return bytes(self.names[row]).decode("utf-8", "backslashreplace")


class ConcatImages:
    """The images of two splits concatenated, each of `shape` (channels, height, width).

    They stay where they are: `np.concatenate` would read the memory-mapped ones into memory.
    """

    def __init__(self, first: Images, second: Images, shape: Shape):
        self.first, self.second, self.shape = first, second, shape

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.shape[1:], self.shape[0]), np.uint8)
        in_second = rows >= len(self.first)
        if not in_second.all():
            images[~in_second] = self.first[rows[~in_second]]
        if in_second.any():
            images[in_second] = self.second[rows[in_second] - len(self.first)]
        return images


@dataclass(frozen=True)
class ImageCache:
    """The decoded images of a source with their labels, split by split, as opened from the cache.

    Also stands for a streamed source, whose images are decoded on access.
    """

    shape: Shape
    classes: tuple[str, ...]
    fingerprint: str
    """Digest of the decoded content: equal on every machine that holds the same images."""
    splits: dict[str, CachedSplit]
    unreadable: list[str]
    """The error of each image that could not be read and is in no split."""
    warnings: list[str]
    """Messages about ignored files and converted images, with counts."""
    max_value: float | None
    """The value of white in the files, where they have more than 8 bits."""

    def with_val_in_train(self) -> "ImageCache":
        """Return the cache with the images of its validation split appended to train."""
        splits = dict(self.splits)
        train, val = splits["train"], splits.pop("val")
        has_names = train.names is not None and val.names is not None
        splits["train"] = CachedSplit(
            images=ConcatImages(train.images, val.images, self.shape),
            labels=np.concatenate([train.labels, val.labels]),
            sums=np.concatenate([train.sums, val.sums]),
            hashes=np.concatenate([train.hashes, val.hashes]),
            names=np.concatenate([train.names, val.names]) if has_names else None,
            rows=np.concatenate([train.rows, train.rows[-1] + 1 + val.rows]),
        )
        return replace(self, splits=splits)


def open_cache(
    name: str,
    source: Source,
    options: dict[str, Any],
    *,
    mode: CacheMode = "auto",
    max_bad: int = 0,
    progress: ProgressCallback | None = None,
    on_message: MessageCallback | None = None,
) -> ImageCache:
    """Return the image cache of a source, decoding the source first if this node has no cache.

    `on_message` is called when another process is decoding the same source. Raises DataError if
    more than `max_bad` images cannot be read, and EnvironmentUnavailable if the cache cannot be
    written.
    """
    files = files_of(source)
    cache_path = cache_folder() / f"{name}-{_key(files, options)}"
    try:
        if mode != "stream" and cache_path.exists():
            return _open(cache_path, None, max_bad)
        # The same for other content at this place, so that its partial build is found and deleted.
        partial_path = cache_folder() / f".{name}-{_place(files, options)}"
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(partial_path.with_name(f"{partial_path.name}.lock"), name, on_message):
            if mode != "stream" and cache_path.exists():  # built while this process waited
                return _open(cache_path, None, max_bad)
            splits = source.read()
            with_images = _stores_images(mode, splits, source.shape, partial_path)
            # A name of its own: images may be stored later, once there is room for them.
            stream_path = cache_path.with_name(f"{cache_path.name}-stream")
            folder = cache_path if with_images else stream_path
            if not folder.exists():
                partial = PartialBuild(partial_path, folder)
                build_cache(partial, source, splits, with_images, max_bad, progress)
        return _open(folder, None if with_images else splits, max_bad)
    except OSError as error:
        hint = "" if mode == "stream" else ", or data.cache=stream to store no images"
        raise StorageUnavailable(
            f"cannot use the cache {cache_path}: {error}; set RAYCNN_CACHE to another folder{hint}"
        ) from None


def _lock(
    path: Path, name: str, on_message: MessageCallback | None
) -> AbstractContextManager[None]:
    """Return the lock of a cache folder; waiting for another process is reported."""

    def on_wait() -> None:
        text = (
            f"waiting up to {LOCK_S} s for another process that decodes {name}; lock file: {path}"
        )
        on_message(text) if on_message else print(f"raycnn: {text}", file=sys.stderr)

    busy = f"another process has been decoding {name} for {LOCK_S} s; lock file: {path}"
    return io.lock(path, busy, LOCK_S, on_wait)


def _key(files: Sequence[File], options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, options]).encode())
    for file in files:
        digest.update(json.dumps(file).encode())
    return digest.hexdigest()[:16]


def _place(files: Sequence[File], options: dict[str, Any]) -> str:
    """Return a digest of the options and the folder of all files."""
    folder = os.path.dirname(os.path.commonprefix([file.name for file in files]))
    return hashlib.sha256(json.dumps([options, folder]).encode()).hexdigest()[:16]


def _stores_images(
    mode: CacheMode, splits: dict[str, Split], shape: Shape, partial_path: Path
) -> bool:
    """Return whether to store the decoded images on disk, a partial build's included.

    Raises EnvironmentUnavailable if `store` is set and they do not fit.
    """
    if mode == "stream":
        return False
    needed = sum(len(split.labels) for split in splits.values()) * math.prod(shape)
    free = shutil.disk_usage(cache_folder()).free
    free += sum(path.stat().st_size for path in partial_path.glob("*/images.npy"))
    if mode == "auto":
        return free - needed >= MIN_FREE_BYTES
    if needed > free:
        raise EnvironmentUnavailable(
            f"data.cache: store: the decoded images take {needed / 1e6:,.1f} MB, and "
            f"{cache_folder()} has {free / 1e6:,.1f} MB free; set RAYCNN_CACHE to another folder, "
            "or data.cache=auto to decode the images on every access"
        )
    return True


def _open(folder: Path, streamed: dict[str, Split] | None, max_bad: int) -> ImageCache:
    """Open a cache folder; `streamed` holds the images if the folder does not."""
    index = json.loads((folder / INDEX).read_text())
    check_unreadable_limit(index["left_out"], max_bad)
    splits = {}
    for name in index["splits"]:
        rows = np.load(folder / name / "rows.npy")
        if streamed:
            images: Images = Subset(streamed[name].images, rows)
        else:
            # A plain array over the mapped file: np.memmap does more work at every indexing.
            images = np.asarray(np.load(folder / name / "images.npy", mmap_mode="r"))
        labels, sums, hashes = (
            np.load(folder / name / f"{array}.npy") for array in ("labels", "sums", "hashes")
        )
        path = folder / name / "names.npy"
        names = np.load(path, mmap_mode="r") if path.exists() else None
        splits[name] = CachedSplit(images, labels, sums, hashes, names, rows)
    return ImageCache(
        Shape(*index["shape"]),
        tuple(index["classes"]),
        index["fingerprint"],
        splits,
        index["left_out"],
        index["warnings"],
        index["max_value"],
    )
