"""Load a trained network from its run folder, and classify images with it or an exported one."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from raycnn import models
from raycnn.config.components import TRANSFORMS
from raycnn.config.load import saved_job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.data.images.decode import (
    FIT,
    BadImage,
    ImageFormat,
    NamedImage,
    decode_batch,
)
from raycnn.data.sources.base import unreadable
from raycnn.data.sources.folder import walk_pictures
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.errors import DataError
from raycnn.runtime.device import layout
from raycnn.shape import Shape
from raycnn.training import checkpoint, checkpoint_folder
from raycnn.training.predictions import probabilities_of
from raycnn.training.step import autocast
from raycnn.training.tta import with_tta

BATCH_SIZE = 64
MODES = {3: "rgb", 1: "gray"}  # the names of modes in export.json, by channels

PNG_MODES = {
    **dict.fromkeys(("CMYK", "YCbCr", "LAB", "HSV", "RGBX"), "RGB"),
    **dict.fromkeys(("RGBa", "PA"), "RGBA"),
    "La": "LA",
}
"""The mode to convert an image to, by its own, where PNG has none."""

ImageInput = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""An image file, a folder, a PIL image, or a uint8 array or tensor (H, W), (H, W, C) or
(B, H, W, C)."""


class Classifier(Protocol):
    """Protocol of networks that classify images: a run's, or an exported one."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image_format(self) -> ImageFormat: ...

    @property
    def multi_label(self) -> bool: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""

    def predict(self, images: "ImageInput | Sequence[ImageInput]") -> "list[Prediction]":
        """Classify pictures: files, folders, PIL images or uint8 arrays."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a network for one image."""

    source: str
    """The file of the image, or its number among the given images."""
    probabilities: dict[str, float]
    """The probability of each class, the most probable first."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Network:
    """A run's network with its preprocessing, as used in validation and test."""

    module: nn.Module
    """Maps (B, C, H, W) normalized float32 images to (B, K) logits, without `tta`."""
    classes: tuple[str, ...]
    image_format: ImageFormat
    """The format of the training images, before their transforms."""
    pipeline: Pipeline
    device: torch.device
    precision: str
    multi_label: bool = False
    """Whether each class has a probability of its own."""
    tta: str | None = None
    """`train.tta` of the run: the test-time augmentation of predictions."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of an image: by Pillow (size, fit, mode), then on the device."""
        return {
            **describe_format(self.image_format),
            "transforms": [
                type(transform).__name__ for transform in self.pipeline.image_transforms
            ],
            "mean": self.pipeline.mean,
            "std": self.pipeline.std,
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""
        numbers = torch.zeros(len(images), 0, device=self.device)
        with autocast(self.precision, self.device):
            logits = with_tta(self.module, self.tta)(self.pipeline(images.to(self.device), numbers))
        logits = logits.float().cpu()
        return probabilities_of(logits, self.multi_label), logits

    def predict(self, images: ImageInput | Sequence[ImageInput]) -> list[Prediction]:
        """Classify pictures: files, folders, PIL images or uint8 arrays.

        Raises DataError, naming the image, for one that is missing or cannot be read.
        """
        return classify(self, images)


def load_network(weights: Path, device: torch.device) -> Network:
    """Return the network of a checkpoint folder, on a device."""
    metadata = checkpoint_folder.read_state(weights)["about"]
    network = build(metadata, device)
    checkpoint.load_weights(network.module, weights)
    return network


def build(metadata: dict[str, Any], device: torch.device) -> Network:
    """Return the network that a checkpoint's metadata describes, without its weights."""
    job: JobSpec = saved_job_from_tree(metadata["spec"])
    classes = tuple(metadata["classes"])
    module = models.build_model(job.model, Shape(*metadata["shape"]), len(classes))
    module.to(device).to(memory_format=layout(device, job.train.channels_last)).eval()
    transforms = [TRANSFORMS.build(choice) for choice in job.data.transforms]
    pipeline = Pipeline(transforms, metadata["mean"], metadata["std"]).evaluation()
    fit = job.data.options.get("fit", FIT)
    image_format = ImageFormat(Shape(*metadata["source_shape"]), fit, metadata.get("max_value"))
    return Network(
        module, classes, image_format, pipeline, device, job.train.precision,
        metadata.get("multi_label", False), job.train.tta,
    )  # fmt: skip


def describe_format(image_format: ImageFormat) -> dict[str, Any]:
    """Return an image format as plain values; `mode` is None unless there are 1 or 3 channels."""
    channels, height, width = image_format.shape
    return {
        "channels": channels,
        "mode": MODES.get(channels),
        "size": [height, width],
        "fit": image_format.fit,
        "max_value": image_format.max_value,
        "interpolation": "bilinear",
    }


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the images in given folders. Raises DataError for none."""
    pictures: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            pictures.append(path)
            continue
        try:
            pictures += [path / name for name in walk_pictures(path).pictures]
        except OSError as error:
            raise unreadable(error) from None
    if not pictures:
        raise DataError(f"no pictures in {', '.join(map(str, paths))}")
    return pictures


def predict(
    classifier: Classifier, pictures: Sequence[NamedImage]
) -> Iterator[tuple[str, Tensor | BadImage]]:
    """Yield the name of each image, and its probabilities (K,) or its BadImage error."""
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[start : start + BATCH_SIZE]
        decoded = decode_batch(batch, classifier.image_format)
        images = [torch.from_numpy(i) for i in decoded if not isinstance(i, BadImage)]
        stacked = torch.stack(images).permute(0, 3, 1, 2) if images else None
        rows = iter(()) if stacked is None else iter(classifier(stacked)[0])
        for (name, _), image in zip(batch, decoded, strict=True):
            yield name, image if isinstance(image, BadImage) else next(rows)


def classify(classifier: Classifier, images: ImageInput | Sequence[ImageInput]) -> list[Prediction]:
    """Return a prediction for each image. Raises DataError for one that cannot be read."""
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        images = [images]
    pictures = [picture for image in images for picture in _named_images(image)]
    pictures = [(name or f"image {number}", data) for number, (name, data) in enumerate(pictures)]
    predictions = []
    for name, probabilities in predict(classifier, pictures):
        if isinstance(probabilities, BadImage):
            raise probabilities
        predictions.append(prediction_of(name, probabilities, classifier.classes))
    return predictions


def prediction_of(name: str, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
    """Return the Prediction of probabilities (K,), sorted in descending order."""
    ranked = probabilities.sort(descending=True, stable=True)
    names = (classes[index] for index in ranked.indices.tolist())
    return Prediction(name, dict(zip(names, ranked.values.tolist(), strict=True)))


def _named_images(image: ImageInput) -> list[NamedImage]:
    """Return the images to decode; the name is empty if an image is not a file."""
    if isinstance(image, str | Path):
        return [(str(path), path) for path in find_pictures([Path(image)])]
    if isinstance(image, Image.Image):
        return [("", _encode(image))]
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4):
        raise DataError(
            f"an array of pixels is uint8, (H, W), (H, W, C) or (B, H, W, C), not "
            f"{array.dtype} {array.shape}"
        )
    try:
        arrays = array if array.ndim == 4 else [array]
        return [("", _encode(Image.fromarray(_without_gray_axis(one)))) for one in arrays]
    except (TypeError, ValueError):
        raise DataError(
            f"an array of shape {array.shape} is not a picture: the last axis of (H, W, C) or "
            "(B, H, W, C) must be 1 or 3"
        ) from None


def _without_gray_axis(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) for gray pixels (H, W, 1), as Pillow takes them, and others unchanged."""
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _encode(image: Image.Image) -> bytes:
    """Return an image as an uncompressed PNG, so that all images pass through the same decoder.

    Raises DataError if it cannot be read.
    """
    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in PNG_MODES:
            upright = upright.convert(PNG_MODES[upright.mode])
        upright.save(buffer, "PNG", compress_level=0)
    except (OSError, ValueError) as error:  # of a damaged or closed file, or a mode without a PNG
        raise DataError(f"an image cannot be read: {error}") from None
    return buffer.getvalue()
