"""Generate a job spec from a folder of images, with default settings chosen from its contents.

The settings are a starting point for ordinary photographs: a network of 11 million parameters,
AdamW with a one-cycle schedule, crops and horizontal flips, and more epochs for fewer images.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from raycnn.config.changes import apply_changes, parse_changes
from raycnn.config.messages import validate
from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import Tree, to_text
from raycnn.data.images.decode import BadImage, read_header
from raycnn.data.sources.folder import Folder
from raycnn.data.sources.pictures import PictureOptions
from raycnn.errors import DataError, SpecError
from raycnn.shape import Shape

SAMPLED = 64  # number of images whose size is read
SMALL = 48  # pixels: smaller images are not resized
LARGE = 256  # pixels: larger images are resized to this size, and cropped to 224
STEPS = 3000  # approximate number of training steps
COMMENTS = {
    "name": "of the folder of its runs",
    "data": "raycnn list datasets",
    "data.size": "",
    "data.val": "held out to choose the best epoch",
    "data.transforms": "of training images; mirror images are wrong for letters and digits",
    "model": "raycnn list models; {name: resnet18, weights: imagenet} starts from ImageNet's",
    "optimizer": "raycnn list optimizers",
    "schedule": "up to lr and down again, over the whole run",
    "train.epochs": f"about {STEPS:,} steps, 10 to 60 epochs",
    "train.batch_size": "over all workers",
}
"""Reasons for the values, by dotted key; that of the size depends on the images."""


@dataclass(frozen=True)
class FolderJob:
    """A generated job for a folder of images, with the reasons for its settings."""

    tree: Tree
    """The spec without default values."""
    job: JobSpec
    comments: dict[str, str]
    """Reasons for the values, by dotted key."""
    summary: str
    """Number of images and classes, and their folder, for display."""

    def text(self) -> str:
        """Return the spec as commented YAML."""
        return to_text(self.tree, self.comments, f"{self.summary}\nraycnn schema: all other keys")

    def write(self, folder: Path) -> Path:
        """Write the spec to a run folder, for users to edit and train again; return its path."""
        name = self.job.name if self.job.name != "job" else "job-spec"  # job.yaml is the run's own
        path = folder / f"{name}.yaml"
        path.write_text(self.text(), encoding="utf-8")
        return path


def job_for_folder(folder: Path, changes: Iterable[str] | Mapping[str, Any] = ()) -> FolderJob:
    """Return a job for a folder of images, one subfolder per class, with `changes` applied.

    Raises DataError if there are no images, SpecError for an invalid change.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    if (folder / "job.yaml").is_file():
        raise SpecError(f"{folder} is a run: `raycnn resume` continues with it")
    pairs = dict(changes) if isinstance(changes, Mapping) else parse_changes(changes)
    source = Folder(folder, 0.2, PictureOptions(None, "crop", None, None))
    images = {name: len(listing.labels) for name, listing in source.listings.items()}
    shapes = _sample_shapes(source)
    train_images = _train_count(images)
    batch_size = pairs.get("train.batch_size", _batch_size(train_images))
    size, transforms, reason = _size(shapes, pairs.get("data.size"))
    epochs = _epochs(train_images, batch_size if isinstance(batch_size, int) else 1)
    tree: Tree = {
        "name": _name(folder),
        "data": {
            "name": "folder",
            "root": str(folder),
            "size": size,
            "mode": "gray" if all(shape.channels == 1 for shape in shapes) else "rgb",
            "val": 0.1 if train_images >= 1000 else 0.2,
            "transforms": transforms,
        },
        "model": "resnet18",
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": "one_cycle",
        "train": {"epochs": epochs, "batch_size": batch_size},
    }
    tree, origins = apply_changes(tree, {}, pairs)
    total, classes = sum(images.values()), len(source.classes)
    summary = f"{total:,} pictures of {classes} classes in {folder}"
    all_comments = COMMENTS | {"data.size": reason}
    comments = {key: comment for key, comment in all_comments.items() if key not in pairs}
    return FolderJob(tree, validate(JobSpec, tree, origins), comments, summary)


def _name(folder: Path) -> str:
    """Return a valid job name for a folder."""
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("._-")[:64] or "pictures"


def _sample_shapes(source: Folder) -> list[Shape]:
    """Return the shapes of up to SAMPLED images. Raises DataError if none can be read."""
    listing = source.listings["train"]
    rows = np.unique(np.linspace(0, len(listing.names) - 1, SAMPLED, dtype=np.int64))
    shapes = []
    for picture in listing.pictures(rows):
        try:
            shapes.append(read_header(picture, levels=False).shape)
        except BadImage:  # decoding the data reports it
            continue
    if not shapes:
        raise DataError(f"{source.root}: none of {len(rows)} pictures can be read")
    return shapes


def _train_count(images: Mapping[str, int]) -> int:
    """Return the approximate number of training images."""
    return images["train"] if "test" in images else round(0.8 * images["train"])


def _batch_size(images: int) -> int:
    """Return 16 to 128: the largest batch size that gives at least 40 steps per epoch, or 16."""
    return next((size for size in (128, 64, 32) if images >= 40 * size), 16)


def _epochs(images: int, batch_size: int) -> int:
    return min(60, max(10, round(STEPS / max(1, images / batch_size))))


def _size(shapes: list[Shape], requested: Any) -> tuple[Any, list[Any], str]:
    """Return the image size, the transforms that suit it, and the reason for the size."""
    short = int(median(min(shape.height, shape.width) for shape in shapes))
    sizes = {(shape.height, shape.width) for shape in shapes}
    if requested is not None:
        sides = requested if isinstance(requested, list) else [requested]
        valid = [side for side in sides if isinstance(side, int)]
        return requested, _crops(requested, min(valid, default=SMALL)), "as asked for"
    reason = f"of {len(shapes)} pictures the shorter side has {short} pixels (median)"
    if short >= LARGE:
        crop = {"name": "random_resized_crop", "size": 224, "scale": [0.35, 1.0]}
        return LARGE, [crop, "horizontal_flip"], reason
    if short < SMALL and len(sizes) == 1:
        height, width = sizes.pop()
        size: Any = height if height == width else [height, width]
        return size, _crops(size, short), f"all of {len(shapes)} pictures have this size"
    size = short if short < SMALL else short // 16 * 16
    return size, _crops(size, size), reason


def _crops(size: Any, short: int) -> list[Any]:
    """Return the transforms for images of a size, whose shorter side has `short` pixels."""
    if short < SMALL:
        return [{"name": "random_crop", "padding": max(1, short // 8)}, "horizontal_flip"]
    crop = {"name": "random_resized_crop", "size": size, "scale": [0.35, 1.0]}
    return [crop, "horizontal_flip"]
