"""Parse YAML 1.2 into plain values and the line of every key. Tags and aliases are refused.

In YAML 1.2 `1e-3` is a number and `on` is a string; a duplicate key is an error.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raycnn.errors import SpecError, first_line, shortened
from raycnn.io import atomic_path

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 1000

Tree = dict[str, Any]
Where = dict[str, str]  # dotted key -> "file:line"


def load_yaml(path: Path, name: str) -> tuple[Tree, Where]:
    """Return the mapping in a file, and the line of each key.

    Errors call the file `name`. Raises SpecError if it cannot be read or is not a mapping.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(f"{name} has {size:,} bytes; the maximum is {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"cannot read {name}: there is no such file") from None
    except OSError as error:
        raise SpecError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"cannot read {name}: {error}") from None
    value, root = _parse(text, name)
    if not isinstance(value, dict):
        content = "empty" if value is None else f"a {type(value).__name__}"
        raise SpecError(f"{name}:1: a job is a mapping of keys to values; this file is {content}")
    where: Where = {"": name}
    _record_lines(root, "", name, where)
    return value, where


def existing(where: Where, tree: Tree) -> Where:
    """Return the source locations of the keys that a tree has, and of its file.

    Where a spec replaces a part of another, keys of the old part may be left in `where`.
    """
    keys = {"", *dotted_keys(tree)}
    return {key: location for key, location in where.items() if key in keys}


def dotted_keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of all that is inside a value, also in lists: `data.transforms.0`."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            dotted = f"{path}.{key}" if path else str(key)
            yield dotted
            yield from dotted_keys(inner, dotted)


def parse_value(text: str) -> Any:
    """Return the parsed value of a `key=value` command-line argument."""
    return _parse(text, "command line")[0]


def dump(tree: Tree, file: TextIO) -> None:
    """Write a tree as block-style YAML, in the order of its keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(tree, file)


def write(path: Path, tree: Tree) -> None:
    """Write a tree as a YAML file, atomically. Raises OSError where that fails."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        dump(tree, file)


def to_text(tree: Tree, comments: dict[str, str], head: str = "") -> str:
    """Return a tree as YAML with a comment after each dotted key that has one.

    Mappings below the second level, and those in lists, are written on one line.
    """
    lines = [f"# {line}" for line in head.splitlines()]
    for key, value in tree.items():
        inner = value.items() if isinstance(value, dict) else ()
        lines.append(_commented(f"{key}:{'' if inner else f' {_flow(value)}'}", comments.get(key)))
        for name, below in inner:
            dotted = f"{key}.{name}"
            listed = below if isinstance(below, list) and dotted in comments else ()
            text = f"  {name}:{'' if listed else f' {_flow(below)}'}"
            lines.append(_commented(text, comments.get(dotted)))
            lines += [f"    - {_flow(entry)}" for entry in listed]
    return "\n".join(lines) + "\n"


def _commented(line: str, comment: str | None) -> str:
    return f"{line:<43}  # {comment}" if comment else line


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and parse_value(value) == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _parse(text: str, name: str) -> tuple[Any, Node | None]:
    yaml = YAML(typ="safe", pure=True)
    try:
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, CollectionStartEvent)
            depth -= isinstance(event, CollectionEndEvent)
            line = event.start_mark.line + 1
            if depth > MAX_DEPTH:  # the parser would take hours for deep nesting
                raise SpecError(f"{name}:{line}: more than {MAX_DEPTH} levels deep")
            if isinstance(event, AliasEvent):
                raise SpecError(f"{name}:{line}: aliases are not used in a spec; see `extends`")
        root = yaml.compose(text)
        _check_scalars(root, name)
        return yaml.load(text), root
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise SpecError(f"{location}: not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise SpecError(f"{name}: not YAML: {first_line(error)}") from None


def _check_scalars(node: Node | None, name: str) -> None:
    """Raise SpecError for a key that is not a string, and for a number of too many digits."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or not str(key.tag).endswith(":str"):
                text = shortened(key.value) if isinstance(key, ScalarNode) else f"a {key.id}"
                line = key.start_mark.line + 1
                raise SpecError(f"{name}:{line}: a key must be a word, not {text}")
            _check_scalars(value, name)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            _check_scalars(value, name)
    elif isinstance(node, ScalarNode) and str(node.tag).endswith((":int", ":float")):
        if len(node.value) > MAX_DIGITS:
            line = node.start_mark.line + 1
            raise SpecError(f"{name}:{line}: a number of more than {MAX_DIGITS} digits")


def _record_lines(node: Node | None, path: str, name: str, where: Where) -> None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            where[inner] = f"{name}:{key.start_mark.line + 1}"
            _record_lines(value, inner, name, where)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            where[f"{path}.{index}"] = f"{name}:{value.start_mark.line + 1}"
            _record_lines(value, f"{path}.{index}", name, where)
