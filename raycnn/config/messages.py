"""What is wrong with a spec, in plain sentences: the file, the line, the key, what is allowed."""

import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError, unknown


def validate(kind: type[Any], tree: Tree, where: Where) -> Any:
    """A tree as a spec of this kind. Raises SpecError with a line for everything wrong in it."""
    try:
        spec = kind.model_validate(tree)
    except ValidationError as error:
        lines = [_exdescribe(kind, detail, where) for detail in error.errors()]
        raise SpecError("\n".join(lines)) from None
    spec._where.update(where)
    return spec


def _exdescribe(kind: type[Any], detail: ErrorDetails, where: Where) -> str:
    key = ".".join(map(str, detail["loc"]))
    message = describe(detail)
    if detail["type"] == "extra_forbidden":
        *parents, leaf = detail["loc"]
        message = unknown("key", str(leaf), _fields(kind, parents))
    return locate(where, key, message)


def describe(detail: ErrorDetails) -> str:
    """What pydantic found, as one plain sentence."""
    if detail["type"] == "missing":
        return "is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    message = re.sub(
        r"a valid dictionary or instance of (Choice|Data|Model)", "a name, or a mapping", message
    )
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping", message)
    return message if isinstance(detail["input"], dict) else f"{message}, not {detail['input']!r}"


def locate(where: Where, key: str, message: str) -> str:
    """The message with the key it is about, and the file and line that this stands in."""
    place = key
    while place and place not in where:  # the nearest enclosing key that stands in a file,
        place = place.rpartition(".")[0]  # or the file itself
    return ": ".join(filter(None, [where.get(place, ""), key, message]))


def _fields(kind: type[Any], parents: Sequence[int | str]) -> list[str]:
    model: Any = kind
    for key in parents:
        fields = getattr(model, "model_fields", None)
        model = fields[key].annotation if fields else get_args(model)[-1]
        if get_origin(model) in (Union, UnionType):
            model = next(part for part in get_args(model) if part is not type(None))
    return [*model.model_fields, *getattr(model, "file_keys", [])]
