"""Read function signatures from raycnn's source, without importing torch.

The options of a network are parameters of its builder, whose module imports torch, which takes
seconds. To list options, only the statements that types and defaults need are executed: imports
of typing and pydantic, constants, and function definitions.
"""

import __future__

import ast
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import raycnn

LIGHT = ("typing", "functools", "typing_extensions", "pydantic", "collections", "raycnn.config")
FLAGS = __future__.annotations.compiler_flag  # keep annotations as strings


@cache
def namespace(module: str) -> dict[str, Any]:
    """Return the global names of a raycnn module that need no heavy imports."""
    names: dict[str, Any] = {"__name__": module}
    for node in ast.parse(_path(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and not _is_light(node.module):
            if node.module.startswith("raycnn."):
                _import_names(names, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.ImportFrom) or all(_is_light(a.name) for a in node.names):
                _execute(node, module, names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.FunctionDef)):
            with suppress(Exception):  # needs torch, which no type of an option does
                _execute(node, module, names)
    return names


def _import_names(names: dict[str, Any], node: ast.ImportFrom) -> None:
    """Import names from another raycnn module, leaving out those that need heavy imports."""
    if not node.module or not _path(node.module).is_file():
        return
    others = namespace(node.module)
    for alias in node.names:
        if alias.name in others:
            names[alias.asname or alias.name] = others[alias.name]


def _execute(node: ast.stmt, module: str, names: dict[str, Any]) -> None:
    code = compile(ast.Module([node], []), module, "exec", flags=FLAGS, dont_inherit=True)
    exec(code, names)


def _is_light(module: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in LIGHT)


def _path(module: str) -> Path:
    """Return the file of a module; for a package the path does not exist."""
    return Path(raycnn.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
