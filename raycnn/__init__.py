"""raycnn: train, search and ship CNN classifiers from one YAML job spec.

The names below are imported on first use, so that `import raycnn` does not import torch.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# An installed torch_npu would otherwise load during `import torch`, which fails where the CANN
# libraries are missing. runtime/device.py loads it when an NPU is requested.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

__version__ = version("raycnn")

if TYPE_CHECKING:
    from raycnn.api import Run, Search, load, open_network, resume, train, tune

PUBLIC = ("Run", "Search", "load", "open_network", "resume", "train", "tune")

__all__ = [
    "Run",
    "Search",
    "__version__",
    "load",
    "open_network",
    "resume",
    "runs",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module("raycnn.api"), name)
    if name == "runs":  # a callable package, see raycnn/runs/__init__.py
        return import_module("raycnn.runs")
    raise AttributeError(f"module 'raycnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
