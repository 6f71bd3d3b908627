"""Build a cache folder: decode a source chunk by chunk, from where a killed build has stopped."""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raycnn.background import prefetch
from raycnn.data.images.decode import BadImage
from raycnn.data.images.fingerprint import fingerprint_of
from raycnn.data.images.partial import GrowingArray, PartialBuild, RowFormat
from raycnn.data.sources.base import Images, Source, Split, decode_rows, empty_split
from raycnn.errors import DataError
from raycnn.runtime import memory
from raycnn.shape import Shape

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images decoded so far, and the total."""

CHUNK_BYTES, CHUNK_IMAGES = 2**25, 1024  # maximum size of the images decoded at once
PROGRESS_S = 0.3
RECORD_S = 5  # seconds of decoding that a kill may cost
INDEX = "index.json"
MAX_ERRORS_SHOWN = 10  # unreadable images named in an error


@dataclass(frozen=True)
class Chunk:
    """The decoded images of some consecutive rows of a split."""

    count: int
    """The number of rows."""
    images: NDArray[np.uint8]
    """(n, H, W, C): those that can be read."""
    rows: NDArray[np.int64]
    """(n,): their rows."""
    errors: list[str]
    conversions: Counter[str]


@dataclass
class DecodeProgress:
    """Counts decoded images and calls `callback` at most every PROGRESS_S seconds."""

    total: int
    callback: ProgressCallback | None
    count: int
    notified_at: float = field(default_factory=time.monotonic)

    def add(self, images: int) -> None:
        self.count += images
        now = time.monotonic()
        if self.callback and (now - self.notified_at > PROGRESS_S or self.count == self.total):
            self.callback(self.count, self.total)
            self.notified_at = now


def build_cache(
    partial: PartialBuild,
    source: Source,
    splits: dict[str, Split],
    with_images: bool,
    max_bad: int,
    on_progress: ProgressCallback | None,
) -> None:
    """Build a cache folder. Raises DataError if more than `max_bad` images cannot be read.

    The partial build is kept where the process is killed or interrupted, and deleted on errors.
    """
    # Twice: the decoded image, and its copy in the array of a chunk.
    memory.require_memory(2 * math.prod(source.shape), f"one image of {source.shape}")
    record = partial.record
    total = sum(len(split.labels) for split in splits.values())
    progress = DecodeProgress(total, on_progress, sum(record.decoded.values()))
    try:
        for name, split in sorted(splits.items()):
            _decode_split(partial, name, split, source.shape, with_images, progress)
            # If too many images are unreadable, the check below gives the better error.
            if not record.readable[name] and len(record.unreadable) <= max_bad:
                raise empty_split(name)
        check_unreadable_limit(record.unreadable, max_bad)
        _write_index(partial, source, splits)
        partial.complete()
    except Exception:
        partial.delete()
        raise


def check_unreadable_limit(unreadable: list[str], max_bad: int) -> None:
    """Raise DataError, naming the first images, if more than `max_bad` are unreadable."""
    if len(unreadable) > max_bad:
        raise DataError(
            f"images that cannot be read: {len(unreadable)}; data.max_bad allows {max_bad}:\n"
            + "\n".join(f"  {error}" for error in unreadable[:MAX_ERRORS_SHOWN])
            + ("\n  ..." if len(unreadable) > MAX_ERRORS_SHOWN else "")
        )


def _decode_split(
    partial: PartialBuild,
    name: str,
    split: Split,
    shape: Shape,
    with_images: bool,
    progress: DecodeProgress,
) -> None:
    """Decode the rest of a split, each chunk while the one before is written."""
    record = partial.record
    start = record.decoded.setdefault(name, 0)
    record.readable.setdefault(name, 0)
    formats = {
        "rows": RowFormat(np.int64),
        "hashes": RowFormat(np.uint64),
        "sums": RowFormat(np.uint64, (2, shape.channels)),
    }
    # A streamed source is decoded here as well, for all of these; only the pixels are discarded.
    if with_images:
        formats["images"] = RowFormat(np.uint8, (shape.height, shape.width, shape.channels))
    with partial.open_arrays(name, formats) as arrays:
        recorded_at = time.monotonic()
        chunks = _chunks(start, len(split.images), shape)
        for chunk in prefetch(lambda rows: _decode_chunk(split.images, rows), chunks):
            _append(arrays, chunk)
            record.decoded[name] += chunk.count
            record.readable[name] += len(chunk.rows)
            record.unreadable += chunk.errors
            record.conversions.update(chunk.conversions)
            progress.add(chunk.count)
            if time.monotonic() - recorded_at > RECORD_S:
                partial.save(arrays.values())
                recorded_at = time.monotonic()
    rows = np.load(partial.path / name / "rows.npy")
    np.save(partial.path / name / "labels.npy", split.labels[rows])
    if split.names is not None:
        np.save(partial.path / name / "names.npy", split.names[rows])


def _chunks(start: int, end: int, shape: Shape) -> Iterator[NDArray[np.int64]]:
    """Yield the rows from `start` to `end` in chunks."""
    size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(shape)))
    return (np.arange(first, min(first + size, end)) for first in range(start, end, size))


def _decode_chunk(images: Images, rows: NDArray[np.int64]) -> Chunk:
    if not hasattr(images, "decode"):
        return Chunk(len(rows), np.ascontiguousarray(images[rows]), rows, [], Counter())
    decoded = decode_rows(images, rows)
    good = [image for image in decoded if not isinstance(image, BadImage)]
    stacked = np.stack([image.pixels for image in good]) if good else np.empty(0, np.uint8)
    readable = [not isinstance(image, BadImage) for image in decoded]
    errors = [str(image) for image in decoded if isinstance(image, BadImage)]
    conversions = Counter(text for image in good for text in image.conversions)
    return Chunk(len(rows), stacked, rows[readable], errors, conversions)


def _append(arrays: dict[str, GrowingArray], chunk: Chunk) -> None:
    """Append the readable images of a chunk, with their rows, hashes and sums."""
    if not len(chunk.rows):
        return
    arrays["rows"].append(chunk.rows)
    arrays["hashes"].append(_hashes(chunk.images))
    arrays["sums"].append(_sums(chunk.images))
    if "images" in arrays:
        arrays["images"].append(chunk.images)


def _write_index(partial: PartialBuild, source: Source, splits: dict[str, Split]) -> None:
    record = partial.record
    contents = (
        np.load(partial.path / name / f"{array}.npy")
        for name in sorted(splits)
        for array in ("hashes", "labels")
    )
    warnings = [text for split in splits.values() for text in split.warnings]
    warnings += [f"{count:,} {text}" for text, count in record.conversions.most_common()]
    index = {
        "shape": source.shape,
        "classes": source.classes,
        "fingerprint": fingerprint_of(source.shape, source.classes, contents),
        "splits": sorted(splits),
        "left_out": record.unreadable,
        "warnings": list(dict.fromkeys(warnings)),
        "max_value": getattr(source, "max_value", None),
    }
    (partial.path / INDEX).write_text(json.dumps(index))


def _sums(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    pixels = images.reshape(len(images), -1, images.shape[-1])
    squares = np.square(pixels, dtype=np.uint16)  # the smallest type that holds 255 squared
    return np.stack([pixels.sum(1, np.uint64), squares.sum(1, np.uint64)], 1)


def _hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    numbers = (int.from_bytes(digest, "little") for digest in digests)
    return np.fromiter(numbers, np.uint64, len(images))
