"""Changes to a spec: dotted keys and their values, merged into the tree read from a file."""

import os
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path, PurePath
from typing import Any

from raycnn.config import yaml_file
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError
from raycnn.filesystem import is_uri

DEFAULTS: dict[str, Tree] = {
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "schedule": {"name": "constant"},
}
"""The components that a spec has if it does not name others."""
COMMAND_LINE = "command line"  # the source location of keys that no file sets
PATHS = ("data.root", "model.weights", "storage.path", "train.distillation.teacher")


def parse_changes(changes: Iterable[str], section: str = "") -> Tree:
    """Return the dotted keys and values of `key=value` strings.

    Of a `section`, keys may be given without it. Raises SpecError for a string without a key or an
    equals sign.
    """
    pairs, prefix = {}, section and f"{section}."
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"{change!r} is not a change: write key=value, e.g. train.epochs=3")
        dotted = prefix + key.strip().removeprefix(prefix)
        pairs[dotted] = _expand(dotted, yaml_file.parse_value(text))
    return pairs


def _expand(key: str, value: Any) -> Any:
    """Resolve `~` and `..` in a path given on the command line; spec files may not contain them."""
    if key not in PATHS or not isinstance(value, str) or is_uri(value):
        return value
    path = Path(value).expanduser()
    needs_expansion = value.startswith("~") or ".." in PurePath(value).parts
    return os.path.abspath(path) if needs_expansion else value


def apply_changes(
    tree: Tree, where: Where, pairs: Tree, source: str = COMMAND_LINE
) -> tuple[Tree, Where]:
    """Return the tree with dotted keys set, and the updated source location of each key.

    `source` is the location of what is set.
    """
    for path, value in pairs.items():
        keys = _split(path)
        change: Tree = reduce(lambda inner, key: {key: inner}, reversed(keys), value)
        tree = merge(tree, change)
        parents = [".".join(keys[:depth]) for depth in range(1, len(keys))]
        leaves = flatten({path: value})  # an empty mapping among them replaces nothing
        replaced = tuple(f"{leaf}." for leaf, new in leaves.items() if not isinstance(new, dict))
        kept = {key: place for key, place in where.items() if not key.startswith(replaced)}
        # Another name replaces the whole component: what it lacks is missing in the source.
        named = [leaf.removesuffix(".name") for leaf in leaves if leaf.endswith(".name")]
        given = [path, *yaml_file.dotted_keys(value, path), *named]
        where = dict.fromkeys(parents, source) | kept | dict.fromkeys(given, source)
    return tree, where


def _split(path: str) -> list[str]:
    """Split a dotted key into its levels; a searched key, dotted itself, is one level."""
    searched = path.removeprefix("tune.space.")
    return path.split(".") if searched == path else ["tune", "space", searched]


def merge(below: Tree, above: Tree) -> Tree:
    """Return the spec `below` overridden by `above`, recursively.

    A component whose `name` changes is replaced as a whole: its old options are dropped. So is the
    domain of a searched key.
    """
    named = {key: over_default(key, below[key]) for key in DEFAULTS if key in below}
    return _merge(below | named, above)


def over_default(key: str, value: Any) -> Any:
    """Return the value of `optimizer` or `schedule`: without a name as changes of the default."""
    return DEFAULTS[key] | value if isinstance(value, dict) and "name" not in value else value


def _merge(below: Tree, above: Tree) -> Tree:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str):
            old = {"name": old}
        if isinstance(old, dict) and isinstance(value, dict) and _same_entry(old, value):
            # A searched key has one domain: another kind of range has no use for the old bounds.
            merged[key] = old | value if key == "space" else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_entry(below: Tree, above: Tree) -> bool:
    return bool(above.get("name", below.get("name")) == below.get("name"))


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted keys and values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{path}{key}"
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{dotted}.") if nested else {dotted: value}
    return flat
