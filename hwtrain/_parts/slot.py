"""Fields of configurations that hold parts, including those of users."""

import dataclasses
import functools
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import core_schema

from hwtrain._errors import InputError
from hwtrain._parts import registry
from hwtrain._parts.calls import no_part, shown
from hwtrain._parts.part import Part
from hwtrain._parts.source import ENTRY_POINTS, load_plugins

_ABOUT = ("type", "of", "version")
"""Keys beside the fields of a part."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Makes pydantic accept any registered part of a kind in a field.

    In data, a part is a mapping of its fields with its name as `type`. A part that is
    not built in also has its class as `of` and the `version` of its package, which tell
    a reader which code to import. If the reader allows code to run, by the context
    `{"plugins": True}`, installed packages are searched for unregistered names.

    Attributes:
      kind: the kind.
    """

    kind: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(to_data),
        )

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}},
        }

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> Part:
        if isinstance(value, Part):
            registry.name_of(self.kind, type(value))
            try:
                hash(value)
            except TypeError as error:
                raise InputError(
                    f"{type(value).__name__}: its fields must be hashable, because it "
                    "is part of the key of a compiled program: use tuples for lists "
                    f"({error})"
                ) from error
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            if info.mode != "json":
                raise InputError(no_part(registry.parts_of(self.kind), value))
            raise InputError(
                f"expected a registered {self.kind}, or a mapping with its type and "
                f"its fields; got {shown(value)}"
            )
        context = info.context
        part = self._named(value, bool((context or {}).get("plugins")))
        fields = {name: field for name, field in value.items() if name not in _ABOUT}
        if info.mode == "json":  # where strict validation accepts a list for a tuple
            return TypeAdapter(part).validate_json(json.dumps(fields), context=context)
        return part(**fields)

    def _named(self, value: Mapping[str, Any], plugins: bool) -> type[Part]:
        name = value["type"]
        if plugins and name not in registry.names(self.kind):
            load_plugins()
        if name not in registry.names(self.kind) and value.get("of"):
            version = f" {value['version']}" if value.get("version") else ""
            raise InputError(
                f"the {self.kind} {name!r} is {value['of']}{version}, which is not "
                "imported: import what registers it first"
            )
        part = registry.named(self.kind, name)
        if value.get("of", home(part)) != home(part):
            raise InputError(
                f"the {self.kind} {name!r} is {home(part)} here, but was {value['of']} "
                "where this was written"
            )
        return part


def unknown_parts(data: Any) -> list[str]:
    """Returns the parts that data names by `of` and that are not registered.

    Args:
      data: JSON data.
    """
    found: dict[str, None] = {}
    level = [data]
    while level:
        parts = [part for part in level if isinstance(part, dict)]
        for part in parts:
            name, of = part.get("type"), part.get("of")
            if not isinstance(name, str) or not isinstance(of, str):
                continue
            if not any(name in registry.names(kind) for kind in registry.KINDS):
                version = part.get("version")
                found[f"{of} {version}" if version else of] = None
        lists = [part for part in level if isinstance(part, list)]
        level = [value for part in parts for value in part.values()]
        level += [value for part in lists for value in part]
    return list(found)


def without_versions(data: Any) -> Any:
    """Returns data without the package versions of its parts."""
    if isinstance(data, list):
        return [without_versions(value) for value in data]
    if not isinstance(data, dict):
        return data
    left = data.keys() - ({"version"} if "of" in data else set())
    return {key: without_versions(data[key]) for key in data if key in left}


def to_data(part: Part) -> dict[str, Any]:
    """Returns a part as plain data: its name, its origin, and its fields."""
    kind = type(part)
    about = {"type": part.type}
    if home(kind):
        about["of"] = home(kind)
        version = _version(kind.__module__)
        about |= {"version": version} if version else {}
    return {**about, **TypeAdapter(kind).dump_python(part, mode="json")}


def home(part: type) -> str:
    """Returns the origin of a part's class, `module:Class`; empty if built in."""
    if part.__module__.startswith("hwtrain."):
        return ""
    module = part.__module__
    if module.startswith("hwtrain_recipe_") or module == "__main__":
        # Named like the file when imported, whichever way a configuration loads it.
        file = getattr(sys.modules.get(module), "__file__", None)
        module = Path(file).stem if file else module
    return f"{module}:{part.__qualname__}"


def is_own(value: Any) -> bool:
    """Whether a value is a user's part."""
    return isinstance(value, Part) and bool(home(type(value)))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def _version(module: str) -> str | None:
    """Returns the version of the installed package of a module, if there is one."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0])
    return importlib.metadata.version(names[0]) if names else None


@dataclasses.dataclass(frozen=True)
class OpenSlot(Slot):
    """Makes pydantic accept users' parts of a kind beside the built-in ones.

    Those have classes that pydantic checks and describes by itself. Whether `None` is
    taken is what the type of the field says.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        given: Any = registry.built_in(self.kind)
        kinds = get_args(given)
        # The class that the field names, which needs no type: it has a default.
        usual = next((kind for kind in get_args(source) if kind in kinds), None)
        if len(kinds) > 1:
            given = Annotated[given, Field(discriminator="type")]
        given = given | None if type(None) in get_args(source) else given
        inner = handler.generate_schema(given)

        def validate(value: Any, check: Any, info: core_schema.ValidationInfo) -> Any:
            if self._foreign(value):
                return self._validate(value, info)
            if info.mode != "json":
                try:
                    return check(value)
                except ValidationError:
                    parts = registry.parts_of(self.kind)
                    raise InputError(no_part(parts, value)) from None
            # A function validator gets JSON as Python data, for which strict validation
            # accepts no list for a tuple.
            text = json.dumps(value)
            untyped = isinstance(value, Mapping) and "type" not in value
            kind = usual if usual is not None and untyped else given
            return _adapter(kind).validate_json(text, context=info.context)

        def dump(value: Any, write: Any) -> Any:
            return to_data(value) if self._foreign(value) else write(value)

        return core_schema.with_info_wrap_validator_function(
            validate,
            inner,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                dump, schema=inner
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema)

    def _foreign(self, value: Any) -> bool:
        """Whether a value is a part that is not built in, or names one."""
        if isinstance(value, Part):
            return is_own(value)
        name = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(name, str):
            return False
        known = registry.names(self.kind)
        if name in known:
            return bool(home(registry.named(self.kind, name)))
        return "of" in value or bool(
            importlib.metadata.entry_points(group=ENTRY_POINTS)
        )
