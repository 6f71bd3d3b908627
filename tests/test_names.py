"""One public name, one meaning: a reader who searches for it finds one thing."""

import ast
from collections import defaultdict
from pathlib import Path

from raycnn.cli.commands import COMMANDS

PACKAGE = Path(__file__).parent.parent / "raycnn"
DEFINITIONS = ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def public_names(path: Path) -> dict[str, str]:
    """Return what a module defines by name: itself, or for an alias the type it stands for.

    The same alias of the same type in two modules means the same.
    """
    name = str(path.relative_to(PACKAGE))
    defined: dict[str, str] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, DEFINITIONS):
            defined[node.name] = name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            alias = node.targets[0].id
            if alias[0].isupper() and not alias.isupper():
                defined[alias] = ast.unparse(node.value)
    return {name: meaning for name, meaning in defined.items() if name[0] != "_"}


def is_command(path: Path, name: str) -> bool:
    """Return whether a name is a command, which gives users what a module below does."""
    return path.parent.name == "cli" and f"{path.stem}:{name}" in COMMANDS.values()


def test_no_two_modules_define_the_same_public_name() -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "api.py":  # it gives Python users what the modules below do
            continue
        for name, meaning in public_names(path).items():
            if not is_command(path, name):
                meanings[name].add(meaning)
    assert not {name: found for name, found in meanings.items() if len(found) > 1}
