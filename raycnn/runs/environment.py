"""environment.json: the software and devices that a run was created on."""

import platform
import sys
from typing import Any

from raycnn.runtime.device import DEVICE_KINDS, package

PACKAGES = ["raycnn", "torch", "torchvision", "torch_npu", "ray", "numpy", "safetensors"]


def environment() -> dict[str, Any]:
    """Return Python version, platform, CPU count, package versions and devices."""
    import torch  # slow to import, and only a new run needs it

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": DEVICE_KINDS["cpu"].count(),
        "packages": {name: package(name) for name in PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": [name for kind in DEVICE_KINDS.values() for name in kind.names()],
    }
