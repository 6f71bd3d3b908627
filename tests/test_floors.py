"""The house stands: a module imports only from floors below its own, and Ray lives on one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "raycnn"
FLOORS = [  # a package, or where a package has floors of its own, a part of it
    "errors", "shape", "io", "paths", "filesystem",
    "config.packaged", "config.yaml_file", "config.messages", "config.changes", "config.schema",
    "config.load",
    "config.search", "config.signature", "config.registry", "config.components",
    "runtime", "models", "analysis.summary",
    "training.callbacks", "training.optim", "training.loss_scale", "training.ema", "training.metrics",
    "training.checkpoint", "training.pretrained",
    "data.sampling", "data.images.levels", "data.images.decode", "data.sources.base",
    "data.images", "data.sources", "data.transforms", "data.loader", "data.inspect", "data.splits",
    "training.predictions", "training.step", "training.loop", "runs.storage", "runs",
    "training.preflight",
    "training.from_folder",
    "analysis", "search", "report",
    "launch.background", "launch.signals", "launch.launcher", "launch.worker", "launch.trial",
    "launch.local", "launch.ray", "launch.jobs", "launch.dispatch", "cli", "api",
]  # fmt: skip
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or "__" not in path.stem
)


def floor(module: str) -> int:
    """Return the floor of a dotted module inside the package: that of its longest named prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in FLOORS:
            return FLOORS.index(prefix)
    raise AssertionError(f"{module} stands on no floor")


def imported(path: Path) -> set[str]:
    """Return what a file imports when it runs, also inside functions, as dotted names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_floors_below(path: Path) -> None:
    own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for name in imported(path):
        package, _, below = name.partition(".")
        if package == "raycnn" and below not in ("", "__version__"):
            assert floor(below) <= floor(own), f"{own} imports {below}, which stands above it"
        if package == "ray":
            assert own.startswith(("launch.ray", "launch.jobs")), f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_collectives_are_spoken_of_in_one_file(path: Path) -> None:
    if path.name != "distributed.py":
        assert not any(name.startswith("torch.distributed") for name in imported(path))


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "config.load",
        "config.search",
        "config.signature",
        "config.registry",
        "config.components",
        "cli",
        "api",
    ],
)
def test_a_spec_is_read_without_torch_or_ray(module: str) -> None:
    probe = f"import sys, raycnn.{module}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
