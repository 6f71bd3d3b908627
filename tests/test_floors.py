"""The house stands: a module imports only from floors below its own, and Ray lives on one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "raycnn"
FLOORS = [
    "errors", "yaml_file", "spec", "catalogue", "seeds", "shape", "device", "dist", "noise",
    "models", "summary", "optim", "loss_scale", "average", "metrics", "checkpoint", "pretrained", "data",
    "step", "loop", "runs", "check", "predict", "parity", "doctor", "verify", "search", "report", "launch", "cli",
]  # fmt: skip
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or "__" not in path.stem
)


def floor(name: str) -> int:
    return FLOORS.index(name)


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_floors_below(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "raycnn" and rest.split(".")[0] in FLOORS:
            below = rest.split(".")[0]
            assert floor(below) <= floor(own), f"{own} imports {below}, which stands above it"
        if package == "ray":
            assert own == "launch", f"{own} imports {name}: Ray belongs to launch"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_collectives_are_spoken_of_in_one_file(path: Path) -> None:
    if path.name != "dist.py":
        assert not any(name.startswith("torch.distributed") for name in imported(path))


@pytest.mark.parametrize("module", ["errors", "spec", "catalogue", "seeds", "cli"])
def test_a_spec_is_read_without_torch_or_ray(module: str) -> None:
    probe = f"import sys, raycnn.{module}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
