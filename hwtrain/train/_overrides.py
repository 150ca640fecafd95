"""Overrides of a configuration's entries, given as `key=value`."""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Iterator
from typing import Any

from hwtrain._errors import InputError
from hwtrain._parts.cost_constants import CostParameter
from hwtrain._parts.registry import parts_of
from hwtrain._parts.slot import Slot
from hwtrain._parts.wording import closest, show
from hwtrain._plan.hardware import Hardware
from hwtrain.train._config import FreeNames, RuleParameter
from hwtrain.train._hardware import NONE, PRESET, InPlaceOfTable, over
from hwtrain.train._toml import parsed


def parse_override(root: type, override: str) -> tuple[tuple[str, ...], Any]:
    """Returns the path of an entry and the value that an override gives it.

    >>> from hwtrain.train._config import Config
    >>> parse_override(Config, 'task.metrics."a.b".better="higher"')
    (('task', 'metrics', 'a.b', 'better'), 'higher')

    Text in the place of a table that has a type is its type.

    Args:
      root: the class of the configuration.
      override: `"key=value"`, the value as in TOML.

    Raises:
      ValueError: one line that begins with the override, for another form, a key that
        the configuration has not, or a value that TOML has not.
    """
    keys, text = split_override(override)
    name = override[: len(override) - len(text)].removesuffix("=")
    if not keys:
        raise InputError(
            f"{shown(override)}: expected key=value, such as training.steps=100"
        )
    kind: Any = root
    for depth, key in enumerate(keys):
        inner = entry_type(kind, key)
        if inner is None:
            raise InputError(f"{shown(override)}: {unknown(keys[: depth + 1], kind)}")
        kind = inner
    try:
        table = parsed(tomllib.loads, f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        quoted = json.dumps(text.strip())
        raise InputError(
            f"{shown(override)}: expected a value as TOML writes it, got "
            f"{text.strip()}; text needs quotes: --set '{name}={quoted}'"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{shown(override)}: expected a value for {name}, got: {error}"
        ) from None
    if len(table) != 1:
        raise InputError(
            f"{shown(override)}: expected one value, got {len(table)} entries; write "
            "--set once for each"
        )
    value = table["value"]
    if isinstance(value, str) and value != NONE and entry_type(kind, "type"):
        value = TypeOfTable({"type": value})
    return keys, value


class TypeOfTable(dict):
    """A table of which only the type is given, which changes one of the same type."""


def split_override(override: str) -> tuple[tuple[str, ...], str]:
    """Returns the path of an entry, and the text of its value.

    Names with other signs than letters, digits, - and _ are quoted, as in TOML.

    Args:
      override: `"key=value"`. In another text, the path is empty.
    """
    name, equals, text = override.partition("=")
    while equals:
        try:
            table = tomllib.loads(f"{name} = 0")
        except tomllib.TOMLDecodeError:
            # The sign may stand within a quoted name.
            more, equals, text = text.partition("=")
            name = f"{name}={more}"
            continue
        return tuple(_only_path(table)), text
    name, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    return (keys if equals and all(keys) else ()), text


def _only_path(table: Any) -> Iterator[str]:
    while isinstance(table, dict):
        ((key, table),) = table.items()
        yield key


def put(data: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    """Sets an entry of a configuration given as plain data.

    Args:
      data: the configuration, which is changed.
      keys: the path of the entry; an entry of a list has its index as name.
      value: the value.
      override: where it was given, for messages.

    Raises:
      ValueError: one line, if a value stands where a table is expected, or if a list
        has no such entry.
    """
    inner: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        place: Any = key
        if isinstance(inner, list):
            place = _index(inner, keys[: depth + 1], override)
        elif not isinstance(inner, dict):
            raise InputError(
                f"{shown(override)}: expected {'.'.join(keys[:depth])} to be a "
                f"table, got {show(inner)} in the file"
            )
        elif depth == 1 and key.isdecimal() and not inner:
            # Such a list deeper down may be one of a preset.
            _index([], keys[:2], override)
        if last:
            inner[place] = _laid_over(inner, place, value)
        elif isinstance(inner, dict):
            inner = inner.setdefault(place, {})
        else:
            inner = inner[place]


def _laid_over(inner: Any, place: Any, value: Any) -> Any:
    before = inner.get(place) if isinstance(inner, dict) else inner[place]
    if value == NONE and isinstance(before, dict | InPlaceOfTable):
        return InPlaceOfTable(value)
    if isinstance(value, TypeOfTable) and isinstance(before, dict):
        return over({"": before}, {"": value})[""]
    return value


def _index(entries: list[Any], keys: tuple[str, ...], override: str) -> int:
    """Returns the index of an entry in a list."""
    if keys[-1].isdecimal() and int(keys[-1]) < len(entries):
        return int(keys[-1])
    name = ".".join(keys[:-1])
    there = f"0 to {len(entries) - 1}" if entries else "but it has none"
    raise InputError(
        f"{shown(override)}: expected the index of an entry of {name}, {there}; got "
        f"{keys[-1]}; a new entry is added in the file"
    )


def entry_type(kind: Any, key: str) -> Any:
    """Returns the type of an entry in a table or a list; `None` if there is none.

    >>> from hwtrain.train._config import Config
    >>> entry_type(Config, "parts"), entry_type(entry_type(Config, "parts"), "3")
    (tuple[str, ...], <class 'str'>)

    Args:
      kind: the type of the table or list.
      key: the name of the entry, or its index.
    """
    if free := _free_names(kind):
        return free
    found = None
    for member in _members(kind):
        is_list = typing.get_args(member)[1:] == (...,)
        if is_list and typing.get_origin(member) is tuple and key.isdecimal():
            found = typing.get_args(member)[0]
        elif (inner := _fields(member).get(key)) is not None:
            found = inner
    return found


def _free_names(kind: Any) -> Any:
    """Returns the type of the values of a table with free names; `None` for others."""
    if not any(isinstance(extra, FreeNames) for extra in _extras(kind)):
        return None
    pairs = typing.get_args(kind)[0]
    return typing.get_args(typing.get_args(pairs)[0])[1]


def _members(kind: Any) -> list[Any]:
    """Returns the classes that a type may be, those of a union or slot."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    members: list[Any] = []
    if origin is typing.Annotated:
        members = [arguments[0]]
        members += [part for slot in slots(kind) for part in parts_of(slot.kind)]
    elif origin in (typing.Union, types.UnionType):
        members = list(arguments)
    else:
        return [kind]
    return [inner for member in members for inner in _members(member)]


def _fields(kind: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass as a file has them; none of another class."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    if kind is RuleParameter:
        del fields["hardware"]  # a file writes its entries beside the pattern
        fields |= _fields(Hardware)
    presets = (Hardware, RuleParameter, CostParameter)
    return fields | ({PRESET: str} if kind in presets else {})


def _extras(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__metadata__", ())


def slots(kind: Any) -> list[Slot]:
    """Returns the slots in an annotation, if any."""
    return [extra for extra in _extras(kind) if isinstance(extra, Slot)]


_OF_COMMANDS = {
    "evaluation.times_s": "the evaluation of a run is that just after programming; "
    "give times to hwtrain evaluate RUN --times 0,3600,86400, or times_s= to "
    "Run.population",
}
"""Where to say what users look for in a configuration, by the end of its path."""


def unknown(keys: tuple[str, ...], kind: Any) -> str:
    """Returns the error of an entry that there is not, with what may be meant.

    Args:
      keys: the path of the entry.
      kind: the type of the table, or list, that has not this entry.
    """
    above, members = ".".join(keys[:-1]), _members(kind)
    siblings = sorted({name for member in members for name in _fields(member)})
    match = closest(keys[-1], siblings)
    end = ".".join(keys[-2:])
    if end in _OF_COMMANDS:
        hint = _OF_COMMANDS[end]
    elif match and match != keys[-1]:
        hint = f"did you mean {'.'.join((*keys[:-1], match))}?"
    elif siblings:
        hint = f"expected one of: {', '.join(siblings)}"
    elif any(typing.get_origin(member) is tuple for member in members):
        hint = f"{above} is a list, and the first of its entries is {above}.0"
    else:
        hint = f"{above} is a value and holds no keys"
    return f"unknown key {'.'.join(keys)}; {hint}"


def shown(override: str) -> str:
    """Returns an override as given, or only its key if it is long."""
    text = override if len(override) <= 100 else f"{override.partition('=')[0]}=..."
    return f"--set {text}"
