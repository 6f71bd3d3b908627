"""Examine this machine: installed versions, devices, disk space, and incompatibilities."""

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import torch
from packaging.requirements import Requirement

from raycnn.data.images.cache import MIN_FREE_BYTES
from raycnn.errors import EnvironmentUnavailable
from raycnn.paths import cache_folder
from raycnn.runs.preflight import nearest_existing
from raycnn.runtime import device, distributed
from raycnn.runtime.device import DEVICE_KINDS, minor, package

PACKAGES = ["raycnn", "torch", "torchvision", "torch_npu", "ray"]
SHARED = Path("/dev/shm")  # the location of Ray's object store
SHARED_BYTES = 256 << 20
ASCEND = Path("/usr/local/Ascend")


@dataclass(frozen=True)
class DoctorReport:
    """The findings of `raycnn doctor`."""

    versions: dict[str, str | None]
    """Versions of Python, packages, CUDA, CANN and drivers; None if not installed."""
    devices: dict[str, list[str]]
    """The names of the accelerators of each kind."""
    cpus: int
    backends: list[str]
    """The process group backends of this torch."""
    free: dict[str, int]
    """Free bytes by folder; for a missing folder, those of its nearest parent."""
    problems: list[str]
    """Messages about incompatible or missing parts, each with its remedy."""


def check_environment(storage: Path) -> DoctorReport:
    """Examine this machine; `storage` is the folder of the runs."""
    versions = {"python": platform.python_version(), **{name: package(name) for name in PACKAGES}}
    versions |= {
        "torch": torch.__version__,  # with the suffix of its build
        "cuda": torch.version.cuda,
        "nvidia driver": _read_value(Path("/proc/driver/nvidia/version"), r"Module\s+([\d.]+)"),
        "cann": cann(),
        "ascend driver": _read_value(ASCEND / "driver" / "version.info", r"(?im)^version=(\S+)"),
    }
    devices = {name: kind.names() for name, kind in DEVICE_KINDS.items() if name != "cpu"}
    free = {
        str(folder): shutil.disk_usage(nearest_existing(folder)).free
        for folder in (storage, cache_folder(), SHARED)
    }
    problems = [
        *version_conflicts(versions),
        *_missing_drivers(versions, devices),
        *_full_disks(free),
    ]
    return DoctorReport(
        versions, devices, DEVICE_KINDS["cpu"].count(), distributed.backends(), free, problems
    )


def version_conflicts(versions: dict[str, str | None]) -> list[str]:
    """Return messages for incompatible versions of packages, each with a compatible version."""
    torch_version = versions["torch"] or ""
    major, _, number = minor(torch_version).partition(".")
    pairs = {"torch_npu": minor(torch_version)}
    if major == "2":
        pairs["torchvision"] = f"0.{int(number) + 15}"  # the numbering since torch 2.0
    problems = [
        f"{name} {installed} does not fit torch {torch_version}: install {name} {expected}"
        for name, expected in pairs.items()
        if (installed := versions[name]) and minor(installed) != expected
    ]
    for line in requires("raycnn") or []:
        requirement = Requirement(line)
        name, specifier = requirement.name.replace("-", "_"), requirement.specifier
        installed = versions.get(name)
        if installed and not specifier.contains(installed, prereleases=True):
            problems.append(f"{name} {installed} does not fit raycnn: install {name}{specifier}")
    return problems


def _missing_drivers(versions: dict[str, str | None], devices: dict[str, list[str]]) -> list[str]:
    """Return messages for devices whose driver is installed but that torch does not see."""
    problems = []
    if (driver := versions["nvidia driver"]) and not devices["cuda"]:
        reason = "was built without CUDA"
        if built := versions["cuda"]:
            reason = f"sees no GPU: is one visible, and is the driver new enough for CUDA {built}?"
        torch_version = versions["torch"]
        problems.append(f"NVIDIA driver {driver} is installed, but torch {torch_version} {reason}")
    if device.npu_driver() and not devices["npu"]:
        try:
            device.find("npu")
        except EnvironmentUnavailable as error:
            problems.append(str(error))
    return problems


def _full_disks(free: dict[str, int]) -> list[str]:
    return [
        f"{folder} has {available / 2**20:,.0f} MiB free; {minimum / 2**20:,.0f} are needed"
        for folder, available in free.items()
        if available < (minimum := SHARED_BYTES if folder == str(SHARED) else MIN_FREE_BYTES)
    ]


def cann() -> str | None:
    """Return the version of the CANN toolkit of this environment, else of the installed one."""
    home = Path(os.environ.get("ASCEND_TOOLKIT_HOME") or ASCEND / "ascend-toolkit" / "latest")
    files = [*home.glob("*-linux/ascend_toolkit_install.info"), home / "compiler" / "version.info"]
    versions = (_read_value(file, r"(?im)^version=(\S+)") for file in files)
    return next(filter(None, versions), None)


def _read_value(file: Path, pattern: str) -> str | None:
    try:
        match = re.search(pattern, file.read_text())
    except OSError:
        return None
    return match.group(1) if match else None
