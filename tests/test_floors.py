"""The order of the packages: imports go one way, and Ray and collectives have places of their own."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = Path(__file__).parent.parent / "raycnn"
FLOORS = [  # a package, or a module apart from its package, imports only from those before it
    "errors", "shape", "background", "io", "paths", "filesystem",
    "runtime.memory",
    "runtime.device",  # its table has the names that a spec may use
    "config", "runtime", "models", "data", "training", "runs.remote", "runs",
    "analysis", "search", "report", "launch", "cli", "api",
]  # fmt: skip
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or "__" not in path.stem
)

PART_OF = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "urllib3": "requests"}
"""Packages that belong to the interface of a dependency."""
IF_INSTALLED = {"pandas"}


def module_of(path: Path) -> str:
    """Return the dotted name of a module inside the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int:
    """Return the floor of a module: its own, or that of its package."""
    for name in (".".join(module.split(".")[:2]), module.split(".")[0]):
        if name in FLOORS:
            return FLOORS.index(name)
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
    own = module_of(path)
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
        "runs.directory",
        "runs.listing",
        "search.listing",
        "cli",
        "api",
    ],
)
def test_specs_runs_and_searches_are_read_without_torch_or_ray(module: str) -> None:
    probe = f"import sys, raycnn.{module}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_tests_import_what_they_share_from_support_and_not_from_one_another() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        for name in imported(path):
            assert not name.startswith("tests.") or name.startswith("tests.support."), path


def test_modules_do_not_import_one_another_in_a_circle() -> None:
    """Inside a package too: what a module imports, however late, never leads back to it."""
    modules = {module_of(path): path for path in MODULES}
    imports = {
        name: {
            below
            for found in imported(path)
            if (below := _module(found.removeprefix("raycnn."), modules)) not in (None, name)
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join([*way[way.index(name) :], name])
        if name not in done:
            for below in imports[name]:
                visit(below, (*way, name))
            done.add(name)

    for name in imports:
        visit(name, ())


def _module(found: str, modules: dict[str, Path]) -> str | None:
    """Return the module that an import is of, or is in: `data.splits.Splits` is data.splits."""
    while found not in modules and "." in found:
        found = found.rpartition(".")[0]
    return found if found in modules else None


def test_every_imported_package_is_a_declared_dependency() -> None:
    """The tests' own environment has more packages than a user's."""
    declared = {canonicalize_name(Requirement(text).name) for text in requires("raycnn") or []}
    packages = {name.partition(".")[0] for path in MODULES for name in imported(path)}
    distributions = packages_distributions()
    for package in packages - sys.stdlib_module_names - {"raycnn"} - IF_INSTALLED:
        owner = PART_OF.get(package, package)
        names = {canonicalize_name(name) for name in distributions.get(owner, [owner])}
        assert declared & names, f"{package} is imported, and not a dependency"
