"""The image cache: images decoded once per node, memory-mapped, shared by all workers and trials.

Each source has a folder in the cache, keyed by its files' names, sizes and times. It is built under
a lock and a temporary name, and renamed when complete. A source that does not fit on the disk is
streamed: the folder holds everything but the images, which are decoded on every access.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from raycnn import io
from raycnn.data.images.decode import BadImage
from raycnn.data.label_arrays import LabelArray
from raycnn.data.sources.base import Images, Source, Split, Subset, decode_rows, files_of
from raycnn.errors import DataError, EnvironmentUnavailable
from raycnn.paths import cache_folder
from raycnn.runtime import memory
from raycnn.shape import Shape

CacheMode = Literal["auto", "store", "stream"]
"""The values of `data.cache`."""
ProgressCallback = Callable[[int, int], None]
"""Called with the number of images decoded so far, and the total."""
MessageCallback = Callable[[str], None]
"""Called with a message for the user, such as what is being waited for."""

FORMAT = 3  # version of the files in a cache folder; another one is another folder
LOCK_S = 3600  # the longest that another process may take to decode the same source
MIN_FREE_BYTES = 2**30  # disk space that `auto` leaves free
CHUNK_BYTES, CHUNK_IMAGES = 2**25, 1024  # maximum size of the images decoded at once
PROGRESS_S = 0.3
INDEX = "index.json"
MAX_ERRORS_SHOWN = 10  # unreadable images named in an error


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

    def name(self, row: int) -> str:
        if self.names is None:
            return f"row {row}"
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
    cache_path = cache_folder() / f"{name}-{_key(source, options)}"
    try:
        if mode != "stream" and cache_path.exists():
            return _open(cache_path, None, max_bad)
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(cache_path.with_suffix(".lock"), name, on_message):
            if mode != "stream" and cache_path.exists():  # built while this process waited
                return _open(cache_path, None, max_bad)
            splits = source.read()
            with_images = _stores_images(mode, splits, source.shape)
            # A name of its own: images may be stored later, once there is room for them.
            stream_path = cache_path.with_name(f"{cache_path.name}-stream")
            folder = cache_path if with_images else stream_path
            if not folder.exists():
                _build(folder, source, splits, with_images, max_bad, progress)
        return _open(folder, None if with_images else splits, max_bad)
    except OSError as error:
        hint = "" if mode == "stream" else ", or data.cache=stream to store no images"
        raise EnvironmentUnavailable(
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


def _key(source: Source, options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, options]).encode())
    for file in files_of(source):
        digest.update(json.dumps(file).encode())
    return digest.hexdigest()[:16]


def _stores_images(mode: CacheMode, splits: dict[str, Split], shape: Shape) -> bool:
    """Return whether to store the decoded images on disk.

    Raises EnvironmentUnavailable if `store` is set and they do not fit.
    """
    if mode == "stream":
        return False
    needed = sum(len(split.labels) for split in splits.values()) * math.prod(shape)
    free = shutil.disk_usage(cache_folder()).free
    if mode == "auto":
        return free - needed >= MIN_FREE_BYTES
    if needed > free:
        raise EnvironmentUnavailable(
            f"data.cache: store: the decoded images take {needed / 1e6:,.1f} MB, and "
            f"{cache_folder()} has {free / 1e6:,.1f} MB free; set RAYCNN_CACHE to another folder, "
            "or data.cache=auto to decode the images on every access"
        )
    return True


def _build(
    folder: Path,
    source: Source,
    splits: dict[str, Split],
    with_images: bool,
    max_bad: int,
    on_progress: ProgressCallback | None,
) -> None:
    # Twice: the decoded image, and its copy in the array of a chunk.
    memory.require_memory(2 * math.prod(source.shape), f"one image of {source.shape}")
    with io.atomic_folder(folder) as building:
        digest = hashlib.sha256(json.dumps([source.shape, source.classes]).encode())
        total = sum(len(split.labels) for split in splits.values())
        progress = DecodeProgress(total, on_progress)
        unreadable: list[str] = []
        conversions: Counter[str] = Counter()
        for name, split in sorted(splits.items()):
            reader = Reader(split.images, unreadable, conversions)
            count = _write(
                building / name, split, source.shape, with_images, digest, progress, reader
            )
            # If too many images are unreadable, the check below gives the better error.
            if not count and len(unreadable) <= max_bad:
                raise DataError(f"the {name} split is empty")
        _check_unreadable_limit(unreadable, max_bad)
        warnings = [text for split in splits.values() for text in split.warnings]
        warnings += [f"{count:,} {text}" for text, count in conversions.most_common()]
        index = {
            "shape": source.shape,
            "classes": source.classes,
            "fingerprint": digest.hexdigest(),
            "splits": sorted(splits),
            "left_out": unreadable,
            "warnings": list(dict.fromkeys(warnings)),
            "max_value": getattr(source, "max_value", None),
        }
        (building / INDEX).write_text(json.dumps(index))


def _check_unreadable_limit(unreadable: list[str], max_bad: int) -> None:
    """Raise DataError, naming the first images, if more than `max_bad` are unreadable."""
    if len(unreadable) > max_bad:
        raise DataError(
            f"{len(unreadable)} images cannot be read; data.max_bad allows only {max_bad}:\n"
            + "\n".join(f"  {error}" for error in unreadable[:MAX_ERRORS_SHOWN])
            + ("\n  ..." if len(unreadable) > MAX_ERRORS_SHOWN else "")
        )


@dataclass
class DecodeProgress:
    """Counts decoded images and calls `callback` at most every PROGRESS_S seconds."""

    total: int
    callback: ProgressCallback | None
    count: int = 0
    notified_at: float = field(default_factory=time.monotonic)

    def add(self, images: int) -> None:
        self.count += images
        now = time.monotonic()
        if self.callback and (now - self.notified_at > PROGRESS_S or self.count == self.total):
            self.callback(self.count, self.total)
            self.notified_at = now


@dataclass
class Reader:
    """Reads images in chunks, recording those that cannot be read and those converted."""

    images: Images
    unreadable: list[str]
    conversions: Counter[str]

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images (n, H, W, C) uint8 that can be read, and their rows (n,)."""
        if not hasattr(self.images, "decode"):
            return np.ascontiguousarray(self.images[rows]), rows
        images, good = [], []
        for row, image in zip(rows, decode_rows(self.images, rows), strict=True):
            if isinstance(image, BadImage):
                self.unreadable.append(str(image))
            else:
                images.append(image.pixels)
                good.append(row)
                self.conversions.update(image.conversions)
        stacked = np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)
        return stacked, np.array(good, np.int64)


def _write(
    folder: Path,
    split: Split,
    shape: Shape,
    with_images: bool,
    digest: Any,
    progress: DecodeProgress,
    reader: Reader,
) -> int:
    """Write a split chunk by chunk, reading it once; return how many images are readable."""
    folder.mkdir()
    count = len(split.labels)
    sums, hashes = np.empty((count, 2, shape.channels), np.uint64), np.empty(count, np.uint64)
    readable = np.zeros(count, bool)
    # A streamed source is decoded here as well, for its sums, hashes and readable rows; only the
    # pixels are discarded.
    with (folder / "images.npy" if with_images else Path(os.devnull)).open("wb") as file:
        _npy_header(file, count, shape)
        for chunk in _chunks(count, shape):
            images, rows = reader.read(chunk)
            if len(rows):
                digest.update(images)
                sums[rows], hashes[rows], readable[rows] = _sums(images), _hashes(images), True
                file.write(images.tobytes())
            progress.add(len(chunk))
        file.seek(0)  # now that the number of readable images is known
        _npy_header(file, int(readable.sum()), shape)
    rows = np.flatnonzero(readable)
    digest.update(split.labels[rows])
    arrays = {"labels": split.labels, "sums": sums, "hashes": hashes, "names": split.names}
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array[rows])
    np.save(folder / "rows.npy", rows)
    return len(rows)


def _npy_header(file: BinaryIO, count: int, shape: Shape) -> None:
    """Write the .npy header of (count, H, W, C) uint8; its length is the same for every count."""
    size = count, *shape[1:], shape[0]
    header = {"descr": "|u1", "fortran_order": False, "shape": size}
    np.lib.format.write_array_header_1_0(file, header)


def _chunks(count: int, shape: Shape) -> Iterator[NDArray[np.int64]]:
    size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(shape)))
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))


def _sums(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    pixels = images.reshape(len(images), -1, images.shape[-1])
    squares = np.square(pixels, dtype=np.uint16)  # the smallest type that holds 255 squared
    return np.stack([pixels.sum(1, np.uint64), squares.sum(1, np.uint64)], 1)


def _hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    numbers = (int.from_bytes(digest, "little") for digest in digests)
    return np.fromiter(numbers, np.uint64, len(images))


def _open(folder: Path, streamed: dict[str, Split] | None, max_bad: int) -> ImageCache:
    """Open a cache folder; `streamed` holds the images if the folder does not."""
    index = json.loads((folder / INDEX).read_text())
    _check_unreadable_limit(index["left_out"], max_bad)
    splits = {}
    for name in index["splits"]:
        if streamed:
            images: Images = Subset(streamed[name].images, np.load(folder / name / "rows.npy"))
        else:
            # A plain array over the mapped file: np.memmap does more work at every indexing.
            images = np.asarray(np.load(folder / name / "images.npy", mmap_mode="r"))
        labels, sums, hashes = (
            np.load(folder / name / f"{array}.npy") for array in ("labels", "sums", "hashes")
        )
        path = folder / name / "names.npy"
        names = np.load(path, mmap_mode="r") if path.exists() else None
        splits[name] = CachedSplit(images, labels, sums, hashes, names)
    return ImageCache(
        Shape(*index["shape"]),
        tuple(index["classes"]),
        index["fingerprint"],
        splits,
        index["left_out"],
        index["warnings"],
        index["max_value"],
    )
