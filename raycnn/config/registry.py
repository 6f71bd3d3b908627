"""Names to builders. A builder's keyword-only parameters are its YAML options, and nothing else is.

Other packages add names through entry points (`raycnn.models`, `raycnn.datasets`); a spec never
carries an import path.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ValidationError, create_model

from raycnn.config.messages import describe
from raycnn.config.schema import ComponentConfig, Frozen
from raycnn.errors import SpecError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """`section` is the key of the spec that chooses here: it stands in every error."""

    def __init__(
        self,
        kind: str,
        section: str,
        builders: dict[str, Callable[..., T]],
        group: str = "",
        families: dict[str, Callable[[str], Callable[..., T]]] | None = None,
    ):
        self.kind, self.section = kind, section
        self._builders = builders
        self.families = families or {}
        """What makes the builder of a name `FAMILY:NAME`, where a whole package is at hand."""
        self._plugins = {point.name: point for point in entry_points(group=group)} if group else {}

    def names(self) -> list[str]:
        return sorted({*self._builders, *self._plugins})

    def builder(self, name: str) -> Callable[..., T]:
        if name in self._builders:
            return self._builders[name]
        if name in self._plugins:
            return self._plugins[name].load()
        family, colon, member = name.partition(":")
        if colon and family in self.families:
            return self.families[family](member)
        known = [*self.names(), *(f"{family}:NAME" for family in self.families)]
        raise SpecError(unknown(self.kind, name, known), f"{self.section}.name")

    def schema(self, name: str) -> type[BaseModel]:
        """The options of an entry, as a model that validates them."""
        builder = self.builder(name)
        function = builder.func if isinstance(builder, partial) else builder
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {
            option.name: (
                hints[option.name],
                option.default if option.default is not option.empty else ...,
            )
            for option in inspect.signature(builder).parameters.values()
            if option.kind is option.KEYWORD_ONLY
        }
        return create_model(name, __base__=Frozen, **fields)

    def options(self, choice: ComponentConfig) -> dict[str, Any]:
        """The options of a choice, validated, with the builder's defaults filled in."""
        model = self.schema(choice.name)
        try:
            valid = model.model_validate(choice.options)
        except ValidationError as error:
            raise SpecError(*self._explain(error, choice.name, model)) from None
        return {name: getattr(valid, name) for name in model.model_fields}

    def build(self, choice: ComponentConfig, *args: Any) -> T:
        return self.builder(choice.name)(*args, **self.options(choice))

    def _explain(
        self, error: ValidationError, name: str, model: type[BaseModel]
    ) -> tuple[str, str]:
        detail = error.errors()[0]
        option = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            return unknown(f"{name} option", option, model.model_fields), f"{self.section}.{option}"
        return describe(detail), f"{self.section}.{option}"


def with_options(schema: dict[str, Any], tables: list[Registry[Any]]) -> dict[str, Any]:
    """A JSON schema of the spec in which every choice lists its names and their options."""
    for table in tables:
        path = table.section.split(".")
        node = schema
        for key in path[:-1]:
            node = schema["$defs"][key.capitalize()]
        field = node["properties"][path[-1]]
        entries = [_entry(table, name) for name in table.names()]
        base = schema["$defs"].get(table.section.capitalize(), {"properties": {}})
        others = {"pattern": f"^({'|'.join(table.families)}):"}
        if table.families:
            entries.append({"type": "object", "properties": {"name": others}})
        for entry in entries:
            entry["properties"] |= {k: v for k, v in base["properties"].items() if k != "name"}
        choice = {"anyOf": [{"enum": table.names()}, *entries]}
        if table.families:
            choice["anyOf"].append({"type": "string", **others})
        if field.get("type") == "array":
            field["items"] = choice
        else:
            field.pop("$ref", None)
            field |= choice
    return schema


def _entry(table: Registry[Any], name: str) -> dict[str, Any]:
    options = table.schema(name).model_json_schema()
    return {
        "type": "object",
        "properties": {"name": {"const": name}, **options.get("properties", {})},
        "additionalProperties": False,
    }
