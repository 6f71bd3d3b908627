"""Export a trained network: ONNX, safetensors in Hugging Face's layout, or torch.export.

An export is verified against the run before it is written: logits on real images, and the number
of correct test images.
"""

import importlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raycnn import __version__
from raycnn.analysis import model_card
from raycnn.analysis.evaluate import evaluate_run
from raycnn.analysis.exported import DESCRIPTION, FILES, open_exported
from raycnn.analysis.predict import BATCH_SIZE, Classifier, Network, load_network
from raycnn.config.load import saved_job_from_tree
from raycnn.data.splits import Splits, open_splits
from raycnn.errors import DataError, EnvironmentUnavailable, JobFailed, SpecError, unknown
from raycnn.runs.directory import Run
from raycnn.training import checkpoint
from raycnn.training.multi_label import THRESHOLD
from raycnn.training.predictions import probabilities_of

BATCHES = (1, 2, 7)  # batch sizes for comparing logits
TOLERANCE = 1e-3  # of logits, relative to the largest
LOADER = Path(__file__).with_name("onnx_loader.py")
NEEDS = {"onnx": ["onnx", "onnxruntime", "onnxscript"]}

Description = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """An exported network that was verified to equal its run's."""

    folder: Path
    file: Path
    hits: int
    """The number of correct answers on the test images: one for each image; multi-label, one for
    each class of each image."""
    answers: int
    difference: float
    """The largest difference from the run's logits, relative to the largest logit."""


class Deployed(nn.Module):
    """A network from uint8 pixels to probabilities, including transforms and normalization."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network):
        super().__init__()
        self.network, self.transforms = network.module, network.pipeline.transforms
        self.multi_label = network.multi_label
        scales = torch.tensor([network.pipeline.mean, network.pipeline.std]).mul(255)
        mean, std = scales.view(2, 1, -1, 1, 1).unbind()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, each (B, K), of (B, C, H, W) uint8 images."""
        numbers = torch.zeros(0)  # evaluation transforms need no random numbers
        for transform in self.transforms:
            images = transform(images, numbers)
        logits = self.network((images.float() - self.mean) / self.std)
        return probabilities_of(logits, self.multi_label), logits


def export(
    run: Run,
    kind: str,
    *,
    folder: Path | None = None,
    weights: str = "best",
    root: str | None = None,
) -> Export:
    """Write a run's network as `onnx`, `safetensors` or `torch` to a folder of its own.

    Nothing is written unless the exported network equals the run's: its logits, in batches of 1, 2
    and 7 test images, and its number of correct test images, which must match result.json. Raises
    JobFailed when they differ, DataError when the test images are missing (`root` locates them),
    SpecError for an unknown format, and EnvironmentUnavailable for a missing package.
    """
    if kind not in FILES:
        raise SpecError(unknown("format", kind, FILES))
    _require(NEEDS.get(kind, []))
    target = _target(folder or run.folder / "export" / kind)
    path = run.weights(weights)
    network = replace(load_network(path, torch.device("cpu")), precision="fp32")
    splits = _test_images(run, path, root)
    expected = _expected_hits(run, weights, root)
    description = describe_export(run, network, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        WRITERS[kind](made, network, description)
        exported = open_exported(made / FILES[kind])
        difference = _compare_logits(exported, network, splits)
        hits, answers = _compare_hits(exported, network, splits, expected, run)
        description["checked"] = {
            "hits": hits, "answers": answers, "images": len(splits.labels("test")),
            "logits_differ_by": difference,
        }  # fmt: skip
        (made / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        _replace(made, target)
    run.flush()
    return Export(target, target / FILES[kind], hits, answers, difference)


def describe_export(run: Run, network: Network, path: Path) -> Description:
    """Return the content of export.json, without paths of this machine."""
    state = checkpoint.read_state(path)
    metadata = state["about"]
    places = {"data.root": None, "storage.path": "runs", "workers.address": None}
    job = saved_job_from_tree(metadata["spec"]).change(places | {"model.weights": None})
    channels, height, width = network.image_format.shape
    return {
        "run": run.name,
        "epoch": state["epoch"],
        "classes": list(network.classes),
        "multi_label": network.multi_label,
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", channels, height, width]},
        "outputs": ["probabilities", "logits"],
        "preprocessing": network.preprocessing,
        "result": {
            "test": (run.result() or {})["test"],
            "per_class": (run.per_class() or {}).get("per_class", []),
        },
        "metadata": metadata | {"spec": job.tree()},
        "versions": {"raycnn": __version__, "torch": torch.__version__},
    }


def atc_command(export: Export) -> str:
    """Return the command that compiles an exported ONNX file for an Ascend NPU."""
    shape = json.loads((export.folder / DESCRIPTION).read_text())["input"]["shape"]
    sides = ",".join(map(str, [1, *shape[1:]]))
    return (
        f"atc --framework=5 --model={export.file} --output={export.file.with_suffix('')} "
        f'--input_format=NCHW --input_shape="images:{sides}" --soc_version=Ascend310P3'
    )


def _write_onnx(folder: Path, network: Network, description: Description) -> None:
    """Write model.onnx, with torch's default opset, and check it with onnx."""
    import onnx

    path = folder / FILES["onnx"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal deprecations of the exporter
        outputs = description["outputs"]
        program = torch.onnx.export(
            _captured(network), dynamo=True, verbose=False,
            input_names=["images"], output_names=outputs,
        )  # fmt: skip
        assert program
        model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    properties = {"classes": description["classes"], "raycnn": description}
    onnx.helper.set_model_props(model, {key: json.dumps(v) for key, v in properties.items()})
    model.producer_name, model.producer_version = "raycnn", __version__
    onnx.save_model(model, path)
    onnx.checker.check_model(path, full_check=True)
    shutil.copyfile(LOADER, folder / "predict.py")


def _write_torch(folder: Path, network: Network, description: Description) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {DESCRIPTION: json.dumps(description)}
        torch.export.save(_captured(network), folder / FILES["torch"], extra_files=extra)


def _write_safetensors(folder: Path, network: Network, description: Description) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in network.module.state_dict().items()}
    save_file(tensors, folder / FILES["safetensors"], {"format": "pt"})
    config = model_card.config(description)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(model_card.card(description, config), encoding="utf-8")


WRITERS: dict[str, Callable[[Path, Network, Description], None]] = {
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
    "torch": _write_torch,
}


def _captured(network: Network) -> torch.export.ExportedProgram:
    """Return the exported graph of a network, with a dynamic batch size."""
    images = torch.zeros(2, *network.image_format.shape, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    deployed = Deployed(network).eval()
    return torch.export.export(deployed, (images,), dynamic_shapes=({0: batch},))


def _test_images(run: Run, path: Path, root: str | None) -> Splits:
    """Return the data of a run. Raises DataError when it is missing, or differs from the run's."""
    job = run.job()
    splits = open_splits(job.change({"data.root": root}) if root else job)
    if splits.store.fingerprint != checkpoint.read_state(path)["about"]["data"]:
        raise DataError("the images or labels are not the ones this run was trained on")
    return splits


def _batches(splits: Splits, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every test image (B, C, H, W) uint8 once, with its label (B,)."""
    stored, members = splits.members["test"]
    split = splits.store.splits[stored]
    for start in range(0, len(members), size):
        rows = members[start : start + size]
        images = torch.from_numpy(np.ascontiguousarray(split.images[rows]))
        yield images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(split.labels[rows])


def _compare_logits(exported: Classifier, network: Network, splits: Splits) -> float:
    """Return the largest relative difference of logits. Raises JobFailed above TOLERANCE."""
    images, _ = next(_batches(splits, max(BATCHES)))
    images = images.repeat(max(BATCHES), 1, 1, 1)
    worst = 0.0
    for size in BATCHES:
        own, other = network(images[:size])[1], exported(images[:size])[1]
        if own.shape != other.shape:
            raise JobFailed(f"not exported: a batch of {size} gives {tuple(other.shape)} logits")
        scale = max(1.0, own.abs().max().item())
        worst = max(worst, (own - other).abs().max().item() / scale)
    if not worst <= TOLERANCE:
        raise JobFailed(f"not exported: its logits differ from the run's by {worst:.2g}")
    return worst


def _compare_hits(
    exported: Classifier, network: Network, splits: Splits, expected: int, run: Run
) -> tuple[int, int]:
    """Return the hits and answers of the test split. Raises JobFailed for unexpected hits.

    A run in lower precision, or on an accelerator, may round a tie differently: then every image
    must be classified as by this network on the CPU.
    """
    hits = answers = differ = 0
    rounds = run.job().train.precision != "fp32" or bool(run_devices(run))
    for pixels, labels in _batches(splits, BATCH_SIZE):
        predicted = _answers(exported, pixels)
        hits += int((predicted == labels).sum())
        answers += labels.numel()
        if rounds:
            differ += int((predicted != _answers(network, pixels)).sum())
    if hits != expected and (differ or not rounds):
        raise JobFailed(
            f"not exported: {hits} of {answers} answers on the test images are as labeled, and the "
            f"run's result says {expected}"
        )
    return hits, answers


def _answers(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Return the predicted classes (B,), or multi-label (B, K) with 1 for those predicted."""
    probabilities = classifier(pixels)[0]
    if classifier.multi_label:
        return (probabilities >= THRESHOLD).byte()
    return probabilities.argmax(1)


def run_devices(run: Run) -> list[str]:
    """Return the accelerators of the machine that a run was trained on."""
    try:
        return list(json.loads((run.folder / "environment.json").read_text())["devices"])
    except (OSError, ValueError, KeyError):
        return []


def _expected_hits(run: Run, weights: str, root: str | None) -> int:
    result = run.result()
    if not result:
        raise DataError(f"{run.name} has no result yet: `raycnn resume {run.name}` finishes it")
    index = checkpoint.read_index(run.checkpoints)
    if index.get(weights) != index.get("best"):
        result = evaluate_run(run, "test", weights, "cpu", root)
    count = result["test"]["count"]
    if "acc1" in result["test"]:
        return round(result["test"]["acc1"] * count)
    rows = result.get("per_class") or (run.per_class() or {}).get("per_class", [])
    wrong = (r["count"] + r["predicted"] - 2 * round(r["recall"] * r["count"]) for r in rows)
    return count * len(rows) - sum(wrong)


def _require(packages: list[str]) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise EnvironmentUnavailable(
                f"{name} is not installed: pip install 'raycnn[onnx]' brings it"
            ) from None


def _target(folder: Path) -> Path:
    """Return the target folder. Raises SpecError if it holds anything but an earlier export."""
    folder = folder.absolute()
    if folder.exists() and not (folder / DESCRIPTION).is_file() and any(_entries(folder)):
        raise SpecError(f"{folder} is there and holds no earlier export: name a new folder")
    return folder


def _entries(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise SpecError(f"{folder} is a file: name a folder")
    return folder.iterdir()


def _replace(made: Path, target: Path) -> None:
    """Move a complete folder to its place, replacing an earlier export."""
    earlier = made.with_name("earlier")
    if target.exists():
        os.replace(target, earlier)
    os.replace(made, target)
