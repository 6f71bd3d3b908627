"""Load a job spec from its YAML file and command-line changes."""

from collections.abc import Iterable
from pathlib import Path, PurePath
from shlex import quote

from raycnn.config import yaml_file
from raycnn.config.changes import apply_changes, merge, parse_changes
from raycnn.config.messages import validate
from raycnn.config.recipes import find_job_file, no_recipe, recipe_files
from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError

MAX_EXTENDS = 8


def load_job(path: Path, changes: Iterable[str] = ()) -> JobSpec:
    """Return the job in a file, merged over the file it `extends`, with `changes` applied last.

    Raises SpecError, with file and line, for an invalid spec.
    """
    tree, where = read_spec(path, changes)
    if "tune" in tree:
        raise SpecError(f"{path} is a search; run it with `raycnn tune {quote(str(path))}`")
    return validate(JobSpec, tree, where)


def read_spec(path: Path, changes: Iterable[str] = ()) -> tuple[Tree, Where]:
    """Return the unvalidated tree of a file with `changes` applied, and where each key is set."""
    file = find_job_file(path)
    return apply_changes(*_read(file, file, 0), parse_changes(changes))


def job_from_tree(tree: Tree) -> JobSpec:
    """Return the job of a tree of plain values. Raises SpecError if it is invalid."""
    return validate(JobSpec, tree, {})


def saved_job_from_tree(tree: Tree) -> JobSpec:
    """Return the job of a checkpoint. Raises SpecError if it is invalid."""
    return job_from_tree(with_former_defaults(tree))


def load_saved_job(path: Path) -> JobSpec:
    """Return the job in the file of a run. Raises SpecError if it is invalid."""
    tree, where = read_spec(path)
    return validate(JobSpec, with_former_defaults(tree), where)


def with_former_defaults(tree: Tree) -> Tree:
    """Return a saved job with the values that settings had before they were in the spec."""
    optimizer = tree.get("optimizer")
    if not isinstance(optimizer, dict):
        return tree
    return tree | {"optimizer": {"decay_norm_and_bias": True} | optimizer}


def _read(path: Path, shown: Path, depth: int) -> tuple[Tree, Where]:
    tree, where = yaml_file.load_yaml(path, str(shown))
    base = tree.pop("extends", None)
    if base is None:
        return tree, where
    location = where.pop("extends")
    if depth == MAX_EXTENDS:
        raise SpecError(f"{location}: extends: more than {MAX_EXTENDS} files deep, or in a circle")
    if not isinstance(base, str) or PurePath(base).is_absolute() or ".." in PurePath(base).parts:
        raise SpecError(f"{location}: extends: {base!r} is not a file beside this one, or below it")
    folder = path.resolve().parent
    target, name = (folder / base).resolve(), shown.parent / base
    if not target.is_relative_to(folder) or not target.is_file():
        recipes = recipe_files()
        if base not in recipes:
            raise SpecError(
                f"{location}: extends: there is no {base} beside this file, or below it, nor "
                f"{no_recipe(base)}"
            )
        target = name = recipes[base]
    below, below_where = _read(target, name, depth + 1)
    whole = merge(below, tree)
    return whole, yaml_file.existing(below_where | where, whole)
