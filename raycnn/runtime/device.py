"""The table of supported device kinds, with everything that differs between them.

Importing this module does not import torch, which takes seconds: a client of a remote cluster needs
only the names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from raycnn.errors import EnvironmentUnavailable, SpecError, unknown

if TYPE_CHECKING:
    import torch

    from raycnn.config.schema import Train

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "unable to find an engine")
"""What messages of errors for a lack of memory contain; the last is cuDNN's (PyTorch #108645)."""


def _peak_bytes(device: torch.device) -> int:
    import torch

    module = torch.get_device_module(device)
    peak = int(module.max_memory_allocated(device))
    module.reset_peak_memory_stats(device)
    return peak


def _mps_peak_bytes(device: torch.device) -> int:
    import torch

    # No peak is counted, but the allocator keeps what it has had.
    return torch.mps.driver_allocated_memory()


def _free_bytes(device: torch.device) -> int:
    import torch

    return int(torch.get_device_module(device).mem_get_info(device)[0])


def _no_bytes(device: torch.device) -> int:
    return 0


@dataclass(frozen=True)
class DeviceKind:
    """The properties of one type of device."""

    name: str
    """The value of `workers.device`, and torch's device type."""
    backend: str
    """The backend of the process group; CPU tensors use gloo on every device kind."""
    resource: str
    """The name of the Ray resource."""
    count: Callable[[], int]
    """Function that returns the number of devices visible to this process."""
    fused: bool
    """Whether torch has fused optimizer kernels for this device kind."""
    channels_last: bool
    """Whether convolutions are faster on images and weights in the channels-last memory format."""
    pins_memory: bool = True
    """Whether the host need not wait for copies from pinned memory."""
    automatic: bool = True
    """Whether `auto` chooses it where it is available."""
    numbered: bool = True
    """Whether there may be several, each with a number; else there is one."""
    all_reduce: bool = True
    """Whether torch has an all-reduce for this device kind; else a job has one worker."""
    sync_batch_norm: bool = True
    """Whether torch has SyncBatchNorm for this device kind."""
    product: str | None = None
    """The product name of every device, where torch has no function that returns it."""
    peak_bytes: Callable[[torch.device], int] = _peak_bytes
    """Function that returns the peak tensor memory on the device since the last call."""
    free_bytes: Callable[[torch.device], int] = _no_bytes
    """Function that returns the free memory of the device, of which images may take a share; 0 if
    it is the host's own or, as on some of Intel's GPUs, cannot be read."""

    def select(self, local_rank: int, threads: int | None = None) -> torch.device:
        """Make device `local_rank` the current one and return it; set the number of CPU threads.

        On a CPU, this process keeps freed memory from now on.
        """
        global _chosen_threads
        import torch

        from raycnn.runtime import memory

        _chosen_threads = threads
        if threads:
            torch.set_num_threads(threads)
        if self.name == "cpu":
            memory.keep_freed()
        if not self.numbered:
            return torch.device(self.name)
        device = torch.device(self.name, local_rank % max(1, self.count()))
        torch.get_device_module(device).set_device(device)
        return device

    def names(self) -> list[str]:
        """Return the product name of each visible device; none for CPUs."""
        import torch

        count = self.count() if self.name != "cpu" else 0
        if self.product:
            return [self.product] * count
        return [torch.get_device_module(self.name).get_device_name(k) for k in range(count)]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _xpus() -> int:
    import torch

    return torch.xpu.device_count()


def _mps() -> int:
    import torch

    return torch.mps.device_count()


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


_chosen_threads: int | None = None


def cpu_threads() -> int:
    """Return the CPUs of this worker: the number given to `select`, else an equal share of all.

    Torch's number of threads does not tell: torchrun sets it to 1, whatever CPUs there are.
    """
    workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return _chosen_threads or max(1, _cpus() // workers_here)


def _npus() -> int:
    """Return the number of NPUs, importing torch_npu only if a driver is present."""
    if not sys.modules.get("torch_npu"):
        if not npu_driver():
            return 0
        try:
            load_npu()
        except EnvironmentUnavailable:
            return 0
    import torch

    return int(torch.get_device_module("npu").device_count())


DEVICE_KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind(
            "cuda", "cpu:gloo,cuda:nccl", "GPU", _gpus, fused=True, channels_last=True,
            free_bytes=_free_bytes,
        ),
        DeviceKind(
            "npu", "cpu:gloo,npu:hccl", "NPU", _npus, fused=False, channels_last=False,
            free_bytes=_free_bytes,
        ),
        DeviceKind("xpu", "cpu:gloo,xpu:xccl", "GPU", _xpus, fused=True, channels_last=True),
        # Ray has no resource for Apple's GPUs in all versions: a worker asks for CPUs.
        DeviceKind(
            "mps", "gloo", "CPU", _mps, fused=False, channels_last=False, pins_memory=False,
            automatic=False, numbered=False, all_reduce=False, sync_batch_norm=False,
            product="Apple GPU", peak_bytes=_mps_peak_bytes,
        ),
        DeviceKind(
            "cpu", "gloo", "CPU", _cpus, fused=True, channels_last=False, pins_memory=False,
            numbered=False, sync_batch_norm=False,
        ),
    )
}  # fmt: skip


def find(name: str) -> DeviceKind:
    """Return the device kind of this name; `auto` is the first that is available.

    Raises SpecError for an unknown name, EnvironmentUnavailable if no such device is visible.
    """
    if name not in {*DEVICE_KINDS, "auto"}:
        raise SpecError(unknown("device", name, [*DEVICE_KINDS, "auto"]))
    if name == "auto":
        return next(kind for kind in DEVICE_KINDS.values() if kind.automatic and kind.count())
    if name == "npu":
        load_npu()
    kind = DEVICE_KINDS[name]
    if not kind.count():
        raise EnvironmentUnavailable(
            f"workers.device: {name}: this machine has none (torch {package('torch')})"
        )
    return kind


def npu_driver() -> bool:
    """Return whether the device files of the Ascend NPU driver exist on this machine."""
    return any(Path("/dev").glob("davinci[0-9]*"))


def load_npu() -> None:
    """Import torch_npu.

    Raises EnvironmentUnavailable if the package is missing, was built for another version of torch,
    or the CANN libraries are missing.
    """
    import torch

    npu_version, torch_minor = package("torch_npu"), minor(torch.__version__)
    if not npu_version:
        raise EnvironmentUnavailable(
            "workers.device: npu: torch_npu is not installed: pip install 'raycnn[npu]' "
            f"installs the one for torch {torch.__version__}"
        )
    if minor(npu_version) != torch_minor:
        raise EnvironmentUnavailable(
            f"workers.device: npu: torch_npu {npu_version} does not fit torch "
            f"{torch.__version__}: torch_npu {torch_minor} goes with torch {torch_minor}, and "
            f"torch {minor(npu_version)} with torch_npu {minor(npu_version)}"
        )
    if not sys.modules.get("torch_npu"):
        sys.modules.pop("torch_npu", None)
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # missing libraries may raise anything on import
        hide_npu()
        raise EnvironmentUnavailable(
            f"workers.device: npu: torch_npu does not load ({error}): is CANN installed, and was "
            "its set_env.sh sourced?"
        ) from None


def hide_npu() -> None:
    """Make torch_npu appear not to be installed, until `load_npu` is called.

    Ray imports torch_npu whenever it is installed, and fails if the CANN libraries are missing.
    """
    sys.modules.setdefault("torch_npu", None)  # type: ignore[arg-type]


def package(name: str) -> str | None:
    """Return the installed version of a package, or None if it is not installed."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def minor(version: str) -> str:
    """Return the major and minor version: `2.14` for `2.14.0+cu130`."""
    return ".".join(version.split(".")[:2])


def peak_mib(device: torch.device) -> float:
    """Return the peak tensor memory on the device since the last call, in MiB."""
    return DEVICE_KINDS[device.type].peak_bytes(device) / 2**20


def layout(device: torch.device, channels_last: bool | str | None) -> torch.memory_format:
    """Return the memory format of images and weights: the job's, else the device's default."""
    import torch

    if not isinstance(channels_last, bool):
        channels_last = DEVICE_KINDS[device.type].channels_last
    return torch.channels_last if channels_last else torch.contiguous_format


def supports_bf16(kind: str) -> bool:
    """Return whether a kind of device computes in bf16 itself, and does not emulate it."""
    import torch

    supported = getattr(torch.get_device_module(kind), "is_bf16_supported", None)
    if not supported:
        return True
    emulates = "including_emulation" in inspect.signature(supported).parameters
    return bool(supported(including_emulation=False) if emulates else supported())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that a device has too little memory.

    Not all are torch.OutOfMemoryError: cuDNN, cuBLAS and Apple's GPUs have messages of their own.
    """
    import torch

    is_named = any(text in str(error) for text in OUT_OF_MEMORY)
    return is_named or isinstance(error, torch.OutOfMemoryError)


def check_training(settings: Train, kind: str) -> None:
    """Raise SpecError if this device kind does not support these training settings."""
    with_sync = [name for name, row in DEVICE_KINDS.items() if row.sync_batch_norm]
    if settings.sync_batch_norm and kind not in (*with_sync, "auto"):
        raise SpecError(
            f"is for {', '.join(with_sync)}: torch has none for {kind}", "train.sync_batch_norm"
        )
    if settings.precision != "bf16" or kind in ("cpu", "auto") or not DEVICE_KINDS[kind].count():
        return
    if not supports_bf16(kind):
        names = ", ".join(DEVICE_KINDS[kind].names())
        raise SpecError(f"bf16 is not for {names}: use fp32", "train.precision")
