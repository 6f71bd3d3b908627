"""Packages made for tests that are called torch_npu: one simulates cards, others do not load."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from platformdirs import user_cache_path

from raycnn.runtime.device import minor

HERE = Path(__file__).parents[1] / "npu"
WITHOUT_CANN = (
    "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"
)
"""What importing the real one comes to where CANN is not installed."""


def installed(site: Path, version: str, code: str) -> Path:
    """A torch_npu as pip would leave it in `site`, and the entry point by which torch loads it."""
    package, about = site / "torch_npu", site / f"torch_npu-{version}.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return site


def simulated(site: Path) -> Path:
    """One over simulated.cpp, which is compiled when it has changed; skips without a compiler."""
    shutil.copy(_library(), site / "simulated_npu.so")
    code = (HERE / "torch_npu" / "__init__.py").read_text()
    return installed(site, f"{minor(torch.__version__)}.0", code)


def _library() -> Path:
    source = HERE / "simulated.cpp"
    made_of = [source.read_text(), torch.__version__, sys.version]
    key = hashlib.sha256("".join(made_of).encode()).hexdigest()[:16]
    library = user_cache_path("raycnn-tests") / f"simulated-npu-{key}.so"
    if library.exists():
        return library
    headers = Path(sysconfig.get_path("include"))
    if not shutil.which("g++") or not (headers / "Python.h").exists():
        pytest.skip("no simulated NPU: it needs g++ and Python's headers")
    library.parent.mkdir(parents=True, exist_ok=True)
    building, home = library.with_suffix(f".{os.getpid()}"), Path(torch.__file__).parent
    includes = [home / "include", home / "include/torch/csrc/api/include", headers]
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", "-w", "-DTORCH_EXTENSION_NAME=simulated_npu",
         *(word for folder in includes for word in ("-isystem", str(folder))),
         str(source), "-o", str(building),
         f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"],
        check=True, timeout=500,
    )  # fmt: skip
    building.rename(library)
    return library
