"""Images of reports: thumbnails, contact sheets, and Grad-CAM overlays."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from raycnn.analysis.grad_cam import grad_cam
from raycnn.config.schema import JobSpec
from raycnn.data.loader import Batch
from raycnn.data.splits import Splits
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.io import atomic_path
from raycnn.report.style import INK, MUTED, PAPER
from raycnn.runtime import distributed

SIDE = 144  # maximum pixels of a thumbnail's longer side
TINY = 64  # up to this size an image is enlarged without smoothing
GRAD_CAM_BATCH = 8  # images
BATCH = 24  # images shown of a training batch
HEAT = 0.5  # opacity of a heat map

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ReportInput:
    """A trained network with its data, for the images of a report."""

    job: JobSpec
    splits: Splits
    model: nn.Module
    """The network with its best weights."""
    device: torch.device

    def inputs(self, split: str, samples: NDArray[np.int64]) -> Tensor:
        """Return normalized images (B, C, H, W) of a split, as the network sees them."""
        source_split, _ = self.splits.members[split]
        pixels = self.splits.cache.splits[source_split].images[samples].transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        pipeline = self.splits.pipeline.evaluation()
        return pipeline(images, torch.zeros(len(images), 0, device=self.device))

    def grad_cams(self, images: Tensor, classes: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return Grad-CAM maps (B, H, W) for classes (B,); None without a feature map."""
        self.model.eval()
        targets = torch.from_numpy(classes).to(self.device)
        parts = []
        for start in range(0, len(images), GRAD_CAM_BATCH):
            batch = slice(start, start + GRAD_CAM_BATCH)
            heat_maps = grad_cam(self.model, images[batch], targets[batch])
            if heat_maps is None:
                return None
            parts.append(heat_maps.float().cpu().numpy())
        return np.concatenate(parts) if parts else None


@dataclass(frozen=True)
class Thumbnail:
    """An image embedded in a page."""

    uri: str
    width: int
    height: int
    tiny: bool
    """Whether to enlarge it without smoothing."""


def pixels_of(images: Tensor, pipeline: Pipeline) -> Pixels:
    """Return normalized images (B, C, H, W) as pixels (B, H, W, 3)."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (pipeline.mean, pipeline.std))
    shown = (images.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
    array = shown.permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(array if array.shape[3] == 3 else array[..., :1].repeat(3, 3))


def overlay(pixels: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Return pixels (H, W, 3), converted to gray, blended with a heat map (H, W) in 0 to 1."""
    from matplotlib import colormaps  # slow to import

    gray = pixels.mean(2, keepdims=True)
    color = 255 * colormaps["inferno"](heat)[..., :3]
    return ((1 - HEAT) * gray + HEAT * color).astype(np.uint8)


def thumbnail(pixels: Pixels) -> Thumbnail:
    """Return pixels (H, W, 3) as a thumbnail with a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    tiny = max(image.size) <= TINY
    file = BytesIO()
    if tiny:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=80, optimize=True)
    kind = "png" if tiny else "jpeg"
    data = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{data}", *image.size, tiny)


def training_batch(report_input: ReportInput) -> Batch:
    """Return the first BATCH images that the network was trained on, augmented."""
    job, device = report_input.job, report_input.device
    loader = report_input.splits.loader("train", job, device, training=True)
    loader.batch_size = BATCH * distributed.world_size()  # the share of this worker is BATCH
    return next(iter(loader.epoch(0)))


def sheet(path: Path, tiles: Sequence[Pixels], captions: Sequence[str], columns: int = 6) -> None:
    """Write a PNG contact sheet of images (H, W, 3), each above its caption."""
    side, gap, text = SIDE, 10, 16
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default(11)
    height = side * tiles[0].shape[0] // tiles[0].shape[1]
    width = side
    step = height + text + gap
    canvas = Image.new("RGB", (gap + columns * (width + gap), gap + rows * step), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (pixels, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = gap + index % columns * (width + gap), gap + index // columns * step
        resample = Image.Resampling.NEAREST if pixels.shape[1] <= TINY else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(pixels).resize((width, height), resample), (left, top))
        while caption and font.getlength(caption) > width:
            caption = caption[:-2] + "…" if len(caption) > 2 else ""
        draw.text((left, top + height + 2), caption, INK if caption else MUTED, font)
    with atomic_path(path) as temporary:
        canvas.save(temporary, "PNG", optimize=True)
