"""Export a trained network: ONNX, safetensors in Hugging Face's layout, or torch.export.

An export is verified against the run before it is put in place: see export_check.py.
"""

import importlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raycnn import __version__
from raycnn.analysis import export_check, model_card
from raycnn.analysis.evaluate import open_run_data
from raycnn.analysis.exported_network import DESCRIPTION, FILES, open_exported
from raycnn.analysis.predict import Network, load_network
from raycnn.config.load import saved_job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, SpecError, unknown
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.predictions import probabilities_of
from raycnn.training.tta import with_tta

LOADER = Path(__file__).with_name("onnx_loader.py")  # copied beside an ONNX file as predict.py
REQUIRED_PACKAGES = {"onnx": ["onnx", "onnxruntime", "onnxscript"]}

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
        self.network = with_tta(network.module, network.tta)
        self.transforms = network.pipeline.image_transforms
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
    _require(REQUIRED_PACKAGES.get(kind, []))
    target = _target(folder or run.folder / "export" / kind)
    path = run.weights(weights)
    network = replace(load_network(path, torch.device("cpu")), precision="fp32")
    _, splits = open_run_data(run, checkpoint_folder.read_state(path), root)
    expected = export_check.expected_hits(run, weights, root)
    description = describe_export(run, network, path)
    with _folder_beside(target) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        WRITERS[kind](new, network, description)
        exported = open_exported(new / FILES[kind])
        difference = export_check.compare_logits(exported, network, splits)
        hits, answers = export_check.compare_hits(exported, network, splits, expected, run)
        description["checked"] = {
            "hits": hits, "answers": answers, "images": len(splits.labels("test")),
            "logits_differ_by": difference,
        }  # fmt: skip
        (new / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        _replace(new, target)
    run.flush()
    return Export(target, target / FILES[kind], hits, answers, difference)


def describe_export(run: Run, network: Network, path: Path) -> Description:
    """Return the content of export.json, without paths of this machine."""
    state = checkpoint_folder.read_state(path)
    metadata = state["about"]
    job = _without_paths(saved_job_from_tree(metadata["spec"]))
    channels, height, width = network.image_format.shape
    return {
        "run": run.name,
        "epoch": state["epoch"],
        "classes": list(network.classes),
        "multi_label": network.multi_label,
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", channels, height, width]},
        "outputs": ["probabilities", "logits"],
        "preprocessing": network.preprocessing,
        "tta": network.tta,
        "result": {
            "test": (run.result() or {})["test"],
            "per_class": (run.per_class() or {}).get("per_class", []),
        },
        "metadata": metadata | {"spec": job.tree()},
        "versions": {"raycnn": __version__, "torch": torch.__version__},
    }


def _without_paths(job: JobSpec) -> JobSpec:
    """Return a job without the paths, and the addresses, of the machine that it was trained on."""
    changes: dict[str, Any] = {
        "data.root": None, "storage.path": "runs", "workers.address": None, "model.weights": None,
    }  # fmt: skip
    if job.train.distillation:
        parts = job.train.distillation.teacher.partition("?")[0].split("/")
        changes["train.distillation.teacher"] = "/".join(parts[-2:])  # job/n
    path = PurePath(job.data.options.get("path") or "")
    if path.is_absolute():
        changes["data.path"] = path.name
    return job.change(changes)


def atc_command(export: Export) -> str:
    """Return the command that compiles an exported ONNX file for an Ascend NPU."""
    shape = json.loads((export.folder / DESCRIPTION).read_text())["input"]["shape"]
    sides = ",".join(map(str, [1, *shape[1:]]))
    return (
        f"atc --framework=5 --model={quote(str(export.file))} "
        f"--output={quote(str(export.file.with_suffix('')))} "
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
            _exported_program(network), dynamo=True, verbose=False,
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
    export_check.check_onnx(path)
    shutil.copyfile(LOADER, folder / "predict.py")


def _write_torch(folder: Path, network: Network, description: Description) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {DESCRIPTION: json.dumps(description)}
        torch.export.save(_exported_program(network), folder / FILES["torch"], extra_files=extra)


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


def _exported_program(network: Network) -> torch.export.ExportedProgram:
    """Return the graph of a network by torch.export, with a dynamic batch size."""
    images = torch.zeros(2, *network.image_format.shape, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    deployed = Deployed(network).eval()
    return torch.export.export(deployed, (images,), dynamic_shapes=({0: batch},))


def _require(packages: list[str]) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise EnvironmentUnavailable(
                f"{name} is not installed; install it with: pip install 'raycnn[onnx]'"
            ) from None


def _target(folder: Path) -> Path:
    """Return the target folder. Raises SpecError if it holds anything but an earlier export."""
    folder = folder.absolute()
    if folder.exists() and not (folder / DESCRIPTION).is_file() and any(_entries(folder)):
        raise SpecError(f"{folder} already exists and is not an export: name a new folder")
    return folder


def _folder_beside(target: Path) -> "TemporaryDirectory[str]":
    """Return a temporary folder. Raises EnvironmentUnavailable if it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".export-", dir=target.parent)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write {target}: {error}; -o names a folder") from None


def _entries(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise SpecError(f"{folder} is a file: name a folder")
    return folder.iterdir()


def _replace(new: Path, target: Path) -> None:
    """Move a complete folder to its place, replacing an earlier export."""
    if target.exists():
        os.replace(target, new.with_name("earlier"))
    os.replace(new, target)
