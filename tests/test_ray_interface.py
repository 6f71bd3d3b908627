"""The package stands on what Ray documents: read from its source, not from a run of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "raycnn"
RAY = sorted(p for p in (PACKAGE / "launch").rglob("*.py"))
PRIVATE_PARTS = {"v2", "generated", "core", "dashboard", "scripts"}
DOCUMENTED_BASES = {  # what Ray's documentation offers to build on
    "ray.train.BackendConfig", "ray.train.UserCallback", "ray.tune.Callback",
    "ray.tune.Stopper", "ray.tune.search.Searcher", "ray.tune.schedulers.TrialScheduler",
}  # fmt: skip
OWN = {"self", "cls", "os", "sys"}  # names whose underscore attributes are no matter of Ray's


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each name that is imported from Ray is called in full."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ray":
                    found[(alias.asname or alias.name).split(".")[0]] = (
                        alias.name if alias.asname else "ray"
                    )
    return found


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> Iterator[str]:
    """What a module does with Ray that its documentation does not offer."""
    tree = ast.parse(source)
    names = names_of(tree)
    for full in names.values():
        if any(part.startswith("_") or part in PRIVATE_PARTS for part in full.split(".")):
            yield f"imports {full}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            hidden = node.attr.startswith("_") and not node.attr.startswith("__")
            if hidden and base.split(".")[0] not in OWN:
                yield f"line {node.lineno}: {base}.{node.attr}"
            elif hidden and base.count("."):  # self.something._hidden
                yield f"line {node.lineno}: {base}.{node.attr}"
        elif isinstance(node, ast.ClassDef):
            for base_name in map(dotted, node.bases):
                first, _, rest = base_name.partition(".")
                if first in names:
                    full = f"{names[first]}.{rest}".rstrip(".")
                    if full not in DOCUMENTED_BASES:
                        yield f"line {node.lineno}: {node.name} is a subclass of {full}"


@pytest.mark.parametrize("path", RAY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_of_ray_is_used_but_what_it_documents(path: Path) -> None:
    assert not list(faults(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "from ray.train.v2._internal.constants import is_v2_enabled",
        "import ray\nray._private.worker.global_worker",
        "from ray._raylet import GcsClient",
        "from ray.core.generated import gcs_service_pb2",
        "from ray.train.torch import TorchTrainer\nclass Own(TorchTrainer): pass",
        "from ray import tune\nclass Own(tune.Tuner): pass",
        "def f(controller):\n    controller._tune_controller.x()",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert list(faults(source))
