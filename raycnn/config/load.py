"""A job, read from its YAML file and the changes of a command line."""

from collections.abc import Iterable
from pathlib import Path, PurePath

from raycnn.config import yaml_file
from raycnn.config.changes import apply_changes, merge, parse_changes
from raycnn.config.messages import validate
from raycnn.config.packaged import find_job_file
from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError

MAX_EXTENDS = 8


def load_job(path: Path, changes: Iterable[str] = ()) -> JobSpec:
    """The job of a file, with what it `extends` beneath it and the changes above it."""
    tree, where = read_spec(path, changes)
    if "tune" in tree:
        raise SpecError(f"{path} is a search: `raycnn tune {path}`")
    return validate(JobSpec, tree, where)


def read_spec(path: Path, changes: Iterable[str] = ()) -> tuple[Tree, Where]:
    """What a file and the changes say, unchecked, and where each key stands."""
    file = find_job_file(path)
    return apply_changes(*_read(file, file, 0), parse_changes(changes))


def job_from_tree(tree: Tree) -> JobSpec:
    return validate(JobSpec, tree, {})


def _read(path: Path, shown: Path, depth: int) -> tuple[Tree, Where]:
    tree, where = yaml_file.load_yaml(path, str(shown))
    base = tree.pop("extends", None)
    if base is None:
        return tree, where
    place = where.pop("extends")
    if depth == MAX_EXTENDS:
        raise SpecError(f"{place}: extends: more than {MAX_EXTENDS} files deep, or in a circle")
    if not isinstance(base, str) or PurePath(base).is_absolute() or ".." in PurePath(base).parts:
        raise SpecError(f"{place}: extends: {base!r} is not a file beside this one, or below it")
    folder = path.resolve().parent
    target = (folder / base).resolve()
    if not target.is_relative_to(folder) or not target.is_file():
        raise SpecError(f"{place}: extends: there is no {base} beside this file, or below it")
    below, below_where = _read(target, shown.parent / base, depth + 1)
    return merge(below, tree), below_where | where
