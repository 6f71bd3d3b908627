"""A trained network, from its run folder alone, and what it says of pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from raycnn import models
from raycnn.config.components import TRANSFORMS
from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.images.decode import ENDINGS, FIT, BadImage, ImageFormat, decode_batch
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.errors import DataError
from raycnn.runtime.device import layout
from raycnn.shape import Shape
from raycnn.training import checkpoint
from raycnn.training.step import autocast

BATCH = 64


@dataclass(frozen=True)
class Network:
    model: nn.Module
    classes: tuple[str, ...]
    frame: ImageFormat
    """Of the images it was trained on, before their transforms."""
    pipeline: Pipeline
    device: torch.device
    precision: str

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 of the frame's shape to (B, K)."""
        numbers = torch.zeros(len(images), 0, device=self.device)
        with autocast(self.precision, self.device):
            logits = self.model(self.pipeline(images.to(self.device), numbers))
        return torch.softmax(logits.float(), 1).cpu()


def load(weights: Path, device: torch.device) -> Network:
    """The network of a checkpoint's folder."""
    about = checkpoint.read_state(weights)["about"]
    job: JobSpec = job_from_tree(about["spec"])
    classes = tuple(about["classes"])
    model = models.build(job.model, Shape(*about["shape"]), len(classes))
    checkpoint.load_weights(model, weights)
    model.to(device).to(memory_format=layout(device, job.train.channels_last)).eval()
    transforms = [TRANSFORMS.build(choice) for choice in job.data.transforms]
    pipeline = Pipeline(transforms, about["mean"], about["std"]).evaluation()
    fit = job.data.options.get("fit", FIT)
    frame = ImageFormat(Shape(*about["source_shape"]), fit, convert=True)
    return Network(model, classes, frame, pipeline, device, job.train.precision)


def pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the pictures in the folders named. Raises DataError for none."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        hidden = (p for p in inside if p.is_file() and not p.name.startswith("."))
        found += [p for p in hidden if p == path or p.suffix.lower() in ENDINGS]
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, paths))}")
    return found


def predict(network: Network, paths: Sequence[Path]) -> Iterator[tuple[Path, Tensor | BadImage]]:
    """For each picture its probabilities (K,), or what is wrong with it."""
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        read_or_not = decode_batch([(str(path), path) for path in some], network.frame)
        images = [torch.from_numpy(i) for i in read_or_not if not isinstance(i, BadImage)]
        stacked = torch.stack(images).permute(0, 3, 1, 2) if images else None
        rows = iter(()) if stacked is None else iter(network.probabilities(stacked))
        for path, image in zip(some, read_or_not, strict=True):
            yield path, image if isinstance(image, BadImage) else next(rows)
