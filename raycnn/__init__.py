"""raycnn: train, search and ship CNN classifiers from one YAML job spec."""

import os
from importlib.metadata import version

# An installed torch_npu would otherwise load itself inside `import torch`, and break it where the
# CANN libraries are missing. device.py loads it when an NPU is asked for.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

__version__ = version("raycnn")
