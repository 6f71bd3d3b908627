"""Registries of builders by name. A builder's keyword-only parameters are its YAML options.

A builder is registered by its import path and imported on first use, so that names and options
can be listed without torch. Other packages add names through entry points (`raycnn.models`,
`raycnn.datasets`); a spec never contains an import path.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError, create_model

from raycnn.config import renamed, signature
from raycnn.config.messages import describe_error
from raycnn.config.schema import ComponentConfig, Frozen
from raycnn.errors import EnvironmentUnavailable, RaycnnError, SpecError, first_line, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Builders for one section of the spec, each a function or its `module:name`.

    `kind` is the noun for an entry and `section` the spec key that selects one; errors contain
    both. `group` is the entry-point group for other packages. `families` maps the FAMILY of names
    `FAMILY:NAME` to the `module:function` that returns the builder of NAME.
    """

    def __init__(
        self,
        kind: str,
        section: str,
        builders: Mapping[str, str | Callable[..., T]],
        group: str = "",
        families: dict[str, str] | None = None,
    ):
        self.kind, self.section, self.group = kind, section, group
        self._builders: dict[str, Any] = dict(builders)
        self.families = families or {}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        points = entry_points(group=self.group) if self.group else ()
        return {point.name: point for point in points}

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted({*self._builders, *self._plugins})

    def builder(self, name: str) -> Callable[..., T]:
        """Return the builder of a name.

        Raises SpecError for an unknown name, EnvironmentUnavailable if the package that
        registered it cannot be imported.
        """
        if name in self._builders:
            return _import_target(self._builders[name])
        if name in self._plugins:
            return self._load(self._plugins[name])
        family, colon, member = name.partition(":")
        if colon and family in self.families:
            return cast(Callable[..., T], _import_target(self.families[family])(member))
        if moved := renamed.renamed(renamed.NAMES, self.section, name):
            raise SpecError(moved, f"{self.section}.name")
        raise SpecError(self._unknown(name), f"{self.section}.name")

    def _unknown(self, name: str) -> str:
        for family, target in self.families.items():
            try:
                _import_target(target)(name)
            except RaycnnError:
                continue
            return f"unknown {self.kind} {name!r}; did you mean '{family}:{name}'?"
        names = [*self.names(), *(f"{family}:NAME" for family in self.families)]
        return unknown(self.kind, name, names)

    def _load(self, point: EntryPoint) -> Callable[..., T]:
        try:
            builder = point.load()
            _schema(point.name, builder)
        except Exception as error:  # importing another package may raise anything
            package = point.dist.name if point.dist else point.value
            raise EnvironmentUnavailable(
                f"{self.kind} {point.name!r} of the package {package} cannot be used: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from None
        return cast(Callable[..., T], builder)

    def schema(self, name: str) -> type[BaseModel]:
        """Return a pydantic model that validates the options of an entry."""
        return _schema(name, self.builder(name))

    def described(self, name: str) -> type[BaseModel]:
        """Return the options of an entry for display, without importing the builder."""
        target = self._builders.get(name)
        if not isinstance(target, str) or target.partition(":")[0] in sys.modules:
            return self.schema(name)
        module, _, function = target.partition(":")
        return _model(name, option_types(signature.namespace(module)[function]))

    def options(self, choice: ComponentConfig) -> dict[str, Any]:
        """Return the validated options of a choice, with the builder's defaults filled in.

        Raises SpecError for an unknown or invalid option.
        """
        model = self.schema(choice.name)
        try:
            valid = model.model_validate(choice.options)
        except ValidationError as error:
            raise self._explain(error, choice, model, self.section)[0] from None
        return {name: getattr(valid, name) for name in model.model_fields}

    def problems(self, choice: ComponentConfig, key: str = "") -> list[SpecError]:
        """Return what is wrong with a choice: its name, or its options, unknown ones first.

        `key` is the dotted key of the choice; by default the section.
        """
        key = key or self.section
        try:
            model = self.schema(choice.name)
            model.model_validate(choice.options)
        except SpecError as error:
            return [SpecError(error.message, f"{key}.name")]
        except ValidationError as error:
            return self._explain(error, choice, model, key)
        return []

    def build(self, choice: ComponentConfig, *args: Any) -> T:
        """Build an entry from positional arguments and the options of a choice."""
        return self.builder(choice.name)(*args, **self.options(choice))

    def _explain(
        self, error: ValidationError, choice: ComponentConfig, model: type[BaseModel], key: str
    ) -> list[SpecError]:
        """Return one error for each wrong option; of a union pydantic reports every part."""
        names = {*model.model_fields, *type(choice).model_fields}
        unknowns: list[SpecError] = []
        others: dict[str, SpecError] = {}
        for detail in error.errors():
            option = str(detail["loc"][0])
            if detail["type"] == "extra_forbidden":
                message = renamed.renamed(renamed.OPTIONS, self.section, option) or unknown(
                    f"{choice.name} option", option, names
                )
                unknowns.append(SpecError(message, f"{key}.{option}"))
            else:
                others.setdefault(option, SpecError(describe_error(detail), f"{key}.{option}"))
        return [*unknowns, *others.values()]


def _import_target(target: Any) -> Any:
    """Import and return the object at `module:name`; return anything else unchanged."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def option_types(builder: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the type and default (`...` if required) of each keyword-only parameter."""
    function = builder.func if isinstance(builder, partial) else builder
    options = {}
    for option in inspect.signature(builder).parameters.values():
        if option.kind is option.KEYWORD_ONLY:
            hint = option.annotation
            if hint is option.empty:
                raise TypeError(f"the option {option.name} has no type")
            if isinstance(hint, str):
                hint = eval(hint, function.__globals__)
            options[option.name] = (hint, ... if option.default is option.empty else option.default)
    return options


@cache
def _schema(name: str, builder: Callable[..., Any]) -> type[BaseModel]:
    """Return the model of a builder's options; creating one takes pydantic 8 ms."""
    return _model(name, option_types(builder))


def _model(name: str, options: dict[str, tuple[Any, Any]]) -> type[BaseModel]:
    fields: dict[str, Any] = dict(options)
    return create_model(name, __base__=Frozen, **fields)


def with_options(schema: dict[str, Any], tables: list[Registry[Any]]) -> dict[str, Any]:
    """Return a JSON schema of the spec in which every component lists its names and options."""
    for table in tables:
        path = table.section.split(".")
        node = schema
        for key in path[:-1]:
            node = schema["$defs"][key.capitalize()]
        field = node["properties"][path[-1]]
        entries = [_entry(table, name) for name in table.names()]
        definition = field.get("$ref", "").rpartition("/")[2]
        base = schema["$defs"].get(definition, {"properties": {}})
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
    try:
        options = table.described(name).model_json_schema()
    except EnvironmentUnavailable:  # the package is missing: its options are unknown
        return {"type": "object", "properties": {"name": {"const": name}}}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, **options.get("properties", {})},
        "additionalProperties": False,
    }
