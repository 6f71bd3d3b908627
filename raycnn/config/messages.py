"""Validation errors of a spec as sentences: file, line, key, the value and what is allowed."""

import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raycnn.config.yaml_file import Tree, Where, existing
from raycnn.errors import SYNONYMS, SpecError, did_you_mean, shortened, unknown

# The patterns of names in a spec, which differ in length alone.
NAME_PATTERN = re.compile(re.escape("^[a-z0-9][a-z0-9._-]{0,") + r"(\d+)" + re.escape("}$"))
MAX_ERRORS = 10  # reported for one file
MAX_KEY_LENGTH = 200  # characters of a key that are printed
OPTIONS = [
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "model.dropout",
    "data.size",
]
"""Common component options, which are not in the schema, to suggest for a misplaced key."""


def validate(kind: type[Any], tree: Tree, where: Where) -> Any:
    """Return a tree as a validated spec of this kind. Raises SpecError, one line per error."""
    where = existing(where, tree)
    try:
        spec = kind.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        lines = [_explain(kind, detail, where) for detail in details[:MAX_ERRORS]]
        if len(details) > MAX_ERRORS:
            lines.append(f"and {len(details) - MAX_ERRORS:,} more")
        raise SpecError("\n".join(lines)) from None
    spec._where.update(where)
    return spec


def _explain(kind: type[Any], detail: ErrorDetails, where: Where) -> str:
    key = ".".join(map(str, detail["loc"]))
    message = describe_error(detail)
    if detail["type"] == "extra_forbidden":
        *parents, leaf = detail["loc"]
        names = _fields(kind, parents)
        elsewhere = [] if did_you_mean(str(leaf), names) else _same_leaf(kind, str(leaf))
        message = unknown("key", str(leaf), names)
        if elsewhere:
            message = f"unknown key {leaf!r}; did you mean {elsewhere[0]!r}?"
        elif leaf in names:
            message = "can only be set at the top of a file"
    return locate(where, key, message)


def _same_leaf(kind: type[Any], name: str) -> list[str]:
    """Return the dotted keys of a spec whose last part is this name or its synonym."""
    dotted = [*OPTIONS, *_dotted(kind)]
    return [key for key in dotted if key.rpartition(".")[2] in (name, SYNONYMS.get(name))]


def _dotted(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted(field.annotation, f"{prefix}{name}.")
        elif prefix:
            yield prefix + name


def describe_error(detail: ErrorDetails) -> str:
    """Return a pydantic error as one sentence."""
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "string_pattern_mismatch":
        if name := NAME_PATTERN.fullmatch(detail["ctx"]["pattern"]):
            return (
                f"must be at most {int(name[1]) + 1} of a-z, 0-9, '.', '_' and '-', and begin with "
                f"a-z or 0-9, not {shortened(detail['input'])}"
            )
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    message = re.sub(
        r"a valid dictionary or instance of (ComponentConfig|Data|Model|OptimizerConfig)",
        "a name, or a mapping",
        message,
    )
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping", message)
    value = detail["input"]
    if isinstance(value, dict):
        return f"{message}, not a mapping" if detail["type"].endswith("_type") else message
    return f"{message}, not {shortened(value)}"


def locate(where: Where, key: str, message: str) -> str:
    """Return the message prefixed with its key, and the file and line where that is set."""
    place = key
    while place and place not in where:  # go up to the nearest key that a file sets, or to the file
        place = place.rpartition(".")[0]
    shown = key if len(key) < MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}..."
    return ": ".join(filter(None, [where.get(place, ""), shown, message]))


def _fields(kind: type[Any], parents: Sequence[int | str]) -> list[str]:
    model: Any = kind
    for key in parents:
        fields = getattr(model, "model_fields", None)
        model = fields[key].annotation if fields else get_args(model)[-1]
        if get_origin(model) in (Union, UnionType):
            model = next(part for part in get_args(model) if part is not type(None))
    return [*model.model_fields, *getattr(model, "file_keys", [])]
