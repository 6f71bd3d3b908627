"""Load an exported network: an ONNX file, a torch.export archive, or a folder of safetensors."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raycnn.analysis.predict import Classifier, ImageInput, Prediction, build, classify
from raycnn.data.images.decode import ImageFormat
from raycnn.errors import DataError, EnvironmentUnavailable, SpecError
from raycnn.shape import Shape
from raycnn.training import checkpoint

FILES = {"onnx": "model.onnx", "safetensors": "model.safetensors", "torch": "model.pt2"}
DESCRIPTION = "export.json"


class ExportedNetwork(ABC):
    """Base class of exported networks, with their classes and image format."""

    def __init__(self, description: dict[str, Any]):
        self.classes = tuple(description["classes"])
        self.multi_label = description.get("multi_label", False)
        images = description["preprocessing"]
        shape = Shape(images["channels"], *images["size"])
        self.image_format = ImageFormat(shape, images["fit"], images.get("max_value"))

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""

    def predict(self, images: ImageInput | Sequence[ImageInput]) -> list[Prediction]:
        """Classify pictures: files, folders, PIL images or uint8 arrays."""
        return classify(self, images)


class OnnxClassifier(ExportedNetwork):
    """An ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path):
        onnxruntime = require_onnxruntime()
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            providers = ["CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # on a corrupt file onnxruntime may raise anything
            raise DataError(f"{path} is not an ONNX file that can be run: {error}") from None
        properties = self.session.get_modelmeta().custom_metadata_map
        super().__init__(_description(properties.get("raycnn"), path))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""
        pixels = images.contiguous().numpy()
        outputs = self.session.run(["probabilities", "logits"], {"images": pixels})
        probabilities, logits = map(torch.from_numpy, outputs)
        return probabilities, logits


class TorchClassifier(ExportedNetwork):
    """A torch.export archive, run on the CPU."""

    def __init__(self, path: Path):
        extra = {DESCRIPTION: ""}
        try:
            self.module = torch.export.load(path, extra_files=extra).module()
        except Exception as error:  # on a corrupt file torch may raise anything
            raise DataError(f"{path} is not a torch.export archive: {error}") from None
        super().__init__(_description(extra[DESCRIPTION], path))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""
        return self.module(images)


def open_exported(path: Path) -> Classifier:
    """Return the network of an exported file, or of its folder.

    Raises SpecError if there is none, and DataError for a file that cannot be read.
    """
    if path.is_dir():
        files = [path / name for name in FILES.values() if (path / name).is_file()]
        if len(files) != 1:
            raise SpecError(f"{path} must hold one of {', '.join(FILES.values())}")
        path = files[0]
    if path.suffix == ".onnx":
        return OnnxClassifier(path)
    if path.suffix == ".pt2":
        return TorchClassifier(path)
    return _from_safetensors(path)


def is_exported(path: Path) -> bool:
    """Return whether a path names an exported network rather than a run."""
    suffixes = {Path(name).suffix for name in FILES.values()}
    return path.suffix in suffixes or (path / DESCRIPTION).is_file()


def _from_safetensors(path: Path) -> Classifier:
    try:
        metadata = json.loads((path.parent / "config.json").read_text())["raycnn"]
    except (OSError, ValueError, KeyError) as error:
        where = path.parent / "config.json"
        raise DataError(f"cannot read {where}, which describes the network: {error}") from None
    network = build(metadata, torch.device("cpu"))
    checkpoint.load_weights(network.module, path.parent)
    return network


def _description(text: str | None, path: Path) -> dict[str, Any]:
    if not text:
        raise DataError(f"{path} was not exported by raycnn: it names no classes")
    return dict(json.loads(text))


def require_onnxruntime() -> Any:
    """Return the module onnxruntime. Raises EnvironmentUnavailable if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise EnvironmentUnavailable(
            "onnxruntime is not installed; install it with: pip install 'raycnn[onnx]'"
        ) from None
    return onnxruntime
