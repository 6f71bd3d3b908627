"""One public name, one meaning: a reader who searches for it finds one thing."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "raycnn"

FACADES = {"cli", "api.py"}  # they give commands and Python users the same things once more

# The same thing for several subjects or launchers.
SHARED = {
    "compare": "sets several things side by side",
    "confusion": "which class was taken for which: counted in analysis, drawn in report",
    "most_confused": "the classes taken for one another: counted in analysis, drawn in report",
    "publish": "writes a page of the report and its pictures",
    "save": "writes a page or a sheet of pictures",
    "create_numbered": "makes a folder numbered after those that are there",
    "describe": "puts something into words",
    "draw": "makes a picture",
    "examine": "looks for what a person should know",
    "load": "reads a trained network",
    "require": "raises where what is needed is not to be had",
    "slots": "where the trials of a search could be trained",
    "train": "trains a job, one for each launcher",
    "write": "puts a table or a page into a folder",
}


def public_names(path: Path) -> set[str]:
    """Return the public classes and functions that a module defines."""
    kinds = ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"}


def test_no_public_name_has_two_meanings() -> None:
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        if FACADES.isdisjoint(path.relative_to(PACKAGE).parts):
            for name in public_names(path):
                found[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: files for name, files in found.items() if len(files) > 1}
    assert not {name: files for name, files in twice.items() if name not in SHARED}
