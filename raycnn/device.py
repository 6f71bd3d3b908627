"""The kinds of device: one row each, with what the rest of raycnn must know of them."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from raycnn.errors import SpecError, Unfit, unknown
from raycnn.spec import Train


@dataclass(frozen=True)
class Kind:
    """What raycnn must know of a kind of device."""

    name: str
    """As in `workers.device`, and torch's device type."""
    backend: str
    """Of the process group; CPU tensors go through gloo on every kind."""
    resource: str
    """What Ray calls one of them."""
    count: Callable[[], int]
    """How many this process sees."""
    fused: bool
    """Whether torch has fused optimizer kernels for it."""
    layout: torch.memory_format
    """Of images and weights, whichever its convolutions are quicker in."""

    def select(self, local_rank: int, threads: int | None = None) -> torch.device:
        """Make one device this process's own, and give CPU work so many threads."""
        if threads:
            torch.set_num_threads(threads)
        if self.name == "cpu":
            return torch.device("cpu")
        device = torch.device(self.name, local_rank % max(1, self.count()))
        torch.get_device_module(device).set_device(device)
        return device


def _gpus() -> int:
    return torch.cuda.device_count()


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def _npus() -> int:
    try:
        importlib.import_module("torch_npu")
    except (ImportError, RuntimeError, OSError):  # not installed, or without its CANN libraries
        return 0
    return int(torch.get_device_module("npu").device_count())


KINDS = {
    "cuda": Kind("cuda", "cpu:gloo,cuda:nccl", "GPU", _gpus, True, torch.channels_last),
    "npu": Kind("npu", "cpu:gloo,npu:hccl", "NPU", _npus, False, torch.contiguous_format),
    "cpu": Kind("cpu", "gloo", "CPU", _cpus, True, torch.contiguous_format),
}


def find(name: str) -> Kind:
    """The kind asked for; `auto` is the first that is there. Raises Unfit, saying what lacks."""
    if name not in {*KINDS, "auto"}:
        raise SpecError(unknown("device", name, [*KINDS, "auto"]))
    if name == "auto":
        # An NPU is looked for only where its driver is: torch_npu is never loaded by accident.
        present = (kind for kind in KINDS.values() if kind.name != "npu" or _npu_driver())
        return next(kind for kind in present if kind.count())
    kind = KINDS[name]
    if name == "npu":
        _require_npu()
    elif not kind.count():
        raise Unfit(f"workers.device: {name}: this machine has none (torch {torch.__version__})")
    return kind


def _npu_driver() -> bool:
    return any(Path("/dev").glob("davinci[0-9]*"))


def _require_npu() -> None:
    if not importlib.util.find_spec("torch_npu"):
        raise Unfit(
            "workers.device: npu: torch_npu is not installed: pip install 'raycnn[npu]' brings the "
            f"one for torch {torch.__version__}"
        )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, RuntimeError, OSError) as error:
        raise Unfit(
            f"workers.device: npu: torch_npu does not load ({error}): is CANN installed, was its "
            "set_env.sh sourced, and is torch of the same major and minor version?"
        ) from None
    if not _npus():
        raise Unfit("workers.device: npu: torch_npu sees no Ascend device")


def layout(device: torch.device, channels_last: bool | None) -> torch.memory_format:
    """Of images and weights: as asked for, or what is quicker on the device."""
    if channels_last is None:
        return KINDS[device.type].layout
    return torch.channels_last if channels_last else torch.contiguous_format


def check_training(settings: Train, kind: str) -> None:
    """Raises SpecError where this kind of device cannot train like this."""
    if settings.sync_batch_norm and kind == "cpu":
        raise SpecError("is for cuda and npu: torch has none for cpu", "train.sync_batch_norm")
    narrow = settings.precision == "bf16" and kind == "cuda" and torch.cuda.is_available()
    if narrow and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name()
        raise SpecError(f"bf16 is not for {name}: use fp32", "train.precision")
