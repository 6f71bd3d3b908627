"""Decoded images, one memory-mapped copy per node, shared by every worker and every trial.

A folder per source under the cache, keyed by its files' names, sizes and times: built once under a
lock, under a temporary name, and renamed when whole.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_path

from raycnn.data.source import Source, Split, files_of
from raycnn.errors import DataError, Unfit
from raycnn.shape import Shape

FORMAT = 1
LOCK_S = 3600  # the longest that another process may take to decode the same source


@dataclass(frozen=True)
class Stored:
    """One split, on disk."""

    images: NDArray[np.uint8]
    """(N, height, width, channels), memory-mapped."""
    labels: NDArray[np.int64]
    """(N,)"""
    sums: NDArray[np.uint64]
    """(N, 2, channels): of the pixels of an image, and of their squares."""


@dataclass(frozen=True)
class Store:
    shape: Shape
    classes: tuple[str, ...]
    fingerprint: str
    """Of the decoded content, so the same on every machine that holds the same images."""
    splits: dict[str, Stored]


def cache() -> Path:
    return Path(os.environ.get("RAYCNN_CACHE") or user_cache_path("raycnn"))


def open_store(name: str, source: Source, options: dict[str, Any]) -> Store:
    """The store of a source, decoding it first when this node has none."""
    folder = cache() / f"{name}-{_key(source, options)}"
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock"), timeout=LOCK_S):
                if not folder.exists():
                    _build(folder, source)
        return _open(folder)
    except Timeout:
        raise Unfit(f"another process has been decoding {name} for {LOCK_S} s: {folder}") from None
    except OSError as error:
        raise Unfit(f"cannot use the cache {folder}: {error}; RAYCNN_CACHE moves it") from None


def _key(source: Source, options: dict[str, Any]) -> str:
    stats = [(str(path), path.stat()) for path in files_of(source)]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(json.dumps([FORMAT, files, options]).encode()).hexdigest()[:16]


def _build(folder: Path, source: Source) -> None:
    splits = source.read()
    for name, split in splits.items():
        if not len(split.labels):
            raise DataError(f"the {name} split is empty: {source.files()[0].parent}")
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir()
    try:
        digest = hashlib.sha256(json.dumps([source.shape, source.classes]).encode())
        for name, split in sorted(splits.items()):
            _write(building / name, split, digest)
        about = {
            "shape": source.shape,
            "classes": source.classes,
            "fingerprint": digest.hexdigest(),
            "splits": sorted(splits),
        }
        (building / "about.json").write_text(json.dumps(about))
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(folder: Path, split: Split, digest: Any) -> None:
    folder.mkdir()
    images = np.ascontiguousarray(split.images)
    digest.update(images)
    digest.update(split.labels)
    pixels = images.reshape(len(images), -1, images.shape[-1])
    sums = np.stack(
        [pixels.sum(1, np.uint64), np.square(pixels, dtype=np.uint16).sum(1, np.uint64)], 1
    )
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", split.labels)
    np.save(folder / "sums.npy", sums)


def _open(folder: Path) -> Store:
    about = json.loads((folder / "about.json").read_text())
    splits = {}
    for name in about["splits"]:
        images = np.asarray(np.load(folder / name / "images.npy", mmap_mode="r"))
        labels, sums = np.load(folder / name / "labels.npy"), np.load(folder / name / "sums.npy")
        splits[name] = Stored(images, labels, sums)
    return Store(Shape(*about["shape"]), tuple(about["classes"]), about["fingerprint"], splits)
