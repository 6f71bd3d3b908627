"""One public name, one meaning: a reader who searches for it finds one thing."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "raycnn"

FACADES = {"cli", "api.py"}  # they give commands and Python users the same things once more


def public_names(path: Path) -> set[str]:
    """Return the public classes and functions that a module defines."""
    kinds = ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"}


def test_no_two_modules_define_the_same_public_name() -> None:
    modules = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        if FACADES.isdisjoint(path.relative_to(PACKAGE).parts):
            for name in public_names(path):
                modules[name].append(str(path.relative_to(PACKAGE)))
    assert not {name: files for name, files in modules.items() if len(files) > 1}
