"""Read functions of raycnn from their source without importing what their modules import.

The options of a network are parameters of its builder, whose module imports torch, and that takes
seconds. To list options, only what their types and defaults are made of is run: imports of typing
and pydantic, constants, and the functions' headers.
"""

import __future__

import ast
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import raycnn

LIGHT = ("typing", "functools", "typing_extensions", "pydantic", "collections", "raycnn.config")
FLAGS = __future__.annotations.compiler_flag  # annotations stay strings until they are asked for


@cache
def namespace(module: str) -> dict[str, Any]:
    """Return the names of a module of raycnn's that can be defined without heavy imports."""
    names: dict[str, Any] = {"__name__": module}
    for node in ast.parse(_path(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and not _is_light(node.module):
            if node.module.startswith("raycnn."):
                _take(names, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.ImportFrom) or all(_is_light(a.name) for a in node.names):
                _run(node, module, names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.FunctionDef)):
            with suppress(Exception):  # made of torch: no option's type is
                _run(node, module, names)
    return names


def _take(names: dict[str, Any], node: ast.ImportFrom) -> None:
    """Take over what another module of raycnn's defines; what is heavy there is left out."""
    if not node.module or not _path(node.module).is_file():
        return
    others = namespace(node.module)
    for alias in node.names:
        if alias.name in others:
            names[alias.asname or alias.name] = others[alias.name]


def _run(node: ast.stmt, module: str, names: dict[str, Any]) -> None:
    code = compile(ast.Module([node], []), module, "exec", flags=FLAGS, dont_inherit=True)
    exec(code, names)


def _is_light(module: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in LIGHT)


def _path(module: str) -> Path:
    """Return the file of a module; one that does not exist for a package."""
    return Path(raycnn.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
