"""Reads a configuration and turns any error in it into one clear line."""

import dataclasses
import difflib
import itertools
import json
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from hwtrain._parts.cost_constants import CostParameter
from hwtrain._parts.fields import from_dict
from hwtrain._parts.registry import like, names, parts_of
from hwtrain._parts.registry import named as named_part
from hwtrain._parts.slot import Slot, home
from hwtrain._parts.source import load_parts
from hwtrain._plan.hardware import Hardware
from hwtrain.train._config import Config, RuleParameter
from hwtrain.train._entries import EntryError, named
from hwtrain.train._hardware import NONE, PRESET, InPlaceOfTable, written_out
from hwtrain.train._mismatch_config import MismatchConfig, kind_of

_EXPECTED = {
    "string_pattern_mismatch": '"path/to/file.py:function" or "module:function"',
    "dataclass_type": "a table",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "too_short": "at least one entry",
}
"""What pydantic expected, in TOML's terms."""

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "greater than or equal to"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "less than or equal to"),
}

_LONGEST = 100
"""Most entries that an override may address in a list of tables, such as stages."""

_DEEPEST = 20
"""Largest nesting of tables and lists; a configuration has five levels at most."""


def read_config(
    path: str | Path, overrides: Sequence[str] = ()
) -> Config | MismatchConfig:
    """Reads a TOML file, applies the overrides and validates the result.

    A file with a table `[mismatch]` is a `MismatchConfig`.

    Args:
      path: the file.
      overrides: strings `"key=value"`. The key is a path of names joined by dots, the
        value is written as in TOML: `"training.steps=100"`.

    Raises:
      ValueError: one line that names the file or the override, the key, the expected
        and the actual value.
    """
    data = _read_toml(Path(path))
    kind = kind_of(data)
    origin = {}
    try:
        import_parts(data, Path(path).parent)
        for override in overrides:
            keys, value = _parse_override(kind, override)
            _put(data, keys, value, override)
            origin[keys] = override
        import_parts(data, Path(path).parent)
        written = written_out(data, Path(path).parent)
    except EntryError as error:
        raise located(error, path, tuple(origin.values())) from error
    try:
        return from_dict(kind, _as_json(written), plugins=True)
    except pydantic.ValidationError as error:
        raise ValueError(one_line(kind, error, data, str(path), origin)) from None


def import_parts(data: Mapping[str, Any], folder: Path) -> None:
    """Imports the parts that a configuration, given as plain data, names.

    Args:
      data: the configuration.
      folder: the folder that relative paths refer to.

    Raises:
      ValueError: naming the entry and the part that cannot be imported.
    """
    parts = data.get("parts", ())
    if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
        with named("parts"):
            load_parts(parts, folder)


def parsed(loads: Callable[[str], Any], text: str) -> Any:
    """Returns the data in a text, read by `json.loads` or `tomllib.loads`.

    >>> parsed(json.loads, "[" * 100_000)
    Traceback (most recent call last):
    ValueError: tables or lists are nested too deeply

    Args:
      loads: reads the text.
      text: the text.

    Raises:
      ValueError: if it cannot be read. Replaces Python's other errors and advice for
        deeply nested lists and for numbers of thousands of digits.
    """
    try:
        data = loads(text)
        if _depth(data) > _DEEPEST:
            raise RecursionError
        return data
    except RecursionError:
        raise ValueError("tables or lists are nested too deeply") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError):
        raise
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError("a number has thousands of digits") from None


def _depth(data: Any) -> int:
    """Returns how deeply tables and lists are nested."""
    depth, level = 0, [data]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = list(itertools.chain.from_iterable(parts))
    return depth


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(other) for other in path.parent.glob("*.toml")]
        match = difflib.get_close_matches(str(path), siblings, n=1)
        hint = f"; did you mean {match[0]}?" if match else ""
        raise ValueError(
            f"{path}: expected a TOML file, got no such file{hint}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a TOML file, got: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected valid TOML, got: {error}") from None


def _parse_override(root: type, override: str) -> tuple[tuple[str, ...], Any]:
    name, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(keys):
        raise ValueError(
            f"{_shown(override)}: expected key=value, such as training.steps=100"
        )
    kind: Any = root
    for depth, key in enumerate(keys):
        fields = _fields(kind)
        if key not in fields:
            text = _unknown(keys[: depth + 1], fields)
            raise ValueError(f"{_shown(override)}: {text}")
        kind = fields[key]
    try:
        table = parsed(tomllib.loads, f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        quoted = json.dumps(text.strip())
        raise ValueError(
            f"{_shown(override)}: expected a value as TOML writes it, got "
            f"{text.strip()}; text needs quotes: --set '{name}={quoted}'"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{_shown(override)}: expected a value for {name}, got: {error}"
        ) from None
    if len(table) != 1:
        raise ValueError(
            f"{_shown(override)}: expected one value, got {len(table)} entries; write "
            "--set once for each"
        )
    return keys, table["value"]


def _put(data: dict[str, Any], keys: tuple[str, ...], value: Any, override: str):
    for depth, key in enumerate(keys[:-1]):
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ValueError(
                f"{_shown(override)}: expected {'.'.join(keys[: depth + 1])} to be a "
                f"table, got {_show(data)} in the file"
            )
    if value == NONE and isinstance(data.get(keys[-1]), dict):
        value = InPlaceOfTable(value)
    data[keys[-1]] = value


def _fields(kind: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass, or those of all members of a union or slot."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
        if kind is RuleParameter:
            del fields["hardware"]  # a file writes its entries beside the pattern
            fields |= _fields(Hardware)
        presets = (Hardware, RuleParameter, CostParameter)
        return fields | ({PRESET: str} if kind in presets else {})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    members: list[Any] = []
    if origin is typing.Annotated:
        members = [arguments[0]]
        members += [part for slot in _slots(kind) for part in parts_of(slot.kind)]
    elif origin in (typing.Union, types.UnionType):
        members = list(arguments)
    elif origin is tuple and arguments[1:] == (...,):
        return {str(place): arguments[0] for place in range(_LONGEST)}
    fields: dict[str, Any] = {}
    for member in members:
        fields.update(_fields(member))
    return fields


def _as_json(data: dict[str, Any]) -> dict[str, Any]:
    """Converts dates and times, which TOML has and JSON has not, to text."""
    return json.loads(json.dumps(data, default=str))


def one_line(
    kind: type,
    error: pydantic.ValidationError,
    data: Mapping[str, Any],
    file: str,
    origin: Mapping[tuple[str, ...], str],
) -> str:
    """Returns the first error of a configuration in one line.

    Args:
      kind: the class of the configuration.
      error: all errors.
      data: the configuration as it was given.
      file: where it was given.
      origin: by their path, the overrides of entries.
    """
    # A misspelt key makes the right one missing too; report the cause first.
    details = sorted(error.errors(), key=lambda detail: detail["type"] == "missing")
    detail = details[0]
    keys = _key_path(detail["loc"], data)
    # A message about the whole configuration names its key itself.
    named = keys or _words(detail["msg"])
    place = _place(file, origin, named)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{place}: {_explain(kind, detail, keys, data)}{more}"


def _words(message: str) -> tuple[str, ...]:
    """Returns the key at the start of a message."""
    key = message.removeprefix("Value error, ").partition(":")[0]
    return tuple(key.split("."))


def _place(
    file: str, origin: Mapping[tuple[str, ...], str], keys: tuple[str, ...]
) -> str:
    """Returns where an entry was given: the file, or the override."""
    place = file
    for start, override in origin.items():
        if keys[: len(start)] == start or start[: len(keys)] == keys != ():
            place = _shown(override)
    return place


def located(
    error: EntryError, path: str | Path, overrides: Sequence[str] = ()
) -> ValueError:
    """Returns an entry's error with the place where the entry was given, in one line.

    >>> str(located(EntryError("model", "none"), "run.toml", ['model="a.py:b"']))
    '--set model="a.py:b": model: none'

    Args:
      error: what is wrong.
      path: the file.
      overrides: as `read_config` takes them.
    """
    keys = {
        tuple(key.strip() for key in override.partition("=")[0].split(".")): override
        for override in overrides
    }
    place = _place(str(path), keys, tuple(error.key.split(".")))
    return ValueError(f"{place}: {error}")


def _key_path(loc: tuple[int | str, ...], data: Any) -> tuple[str, ...]:
    """Returns the keys that the user wrote; pydantic adds members of unions."""
    keys = []
    for index, part in enumerate(loc):
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, Mapping) and isinstance(part, int) and part < len(data):
            # Pydantic checks a table with free keys as a list of pairs.
            part = list(data)[part]
            data = data[part]
        elif isinstance(part, int) and not isinstance(data, Mapping | list):
            continue  # index of the key or the value in such a pair
        elif isinstance(data, Sequence) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(loc) - 1 or _is_tag(part, data):
            continue
        keys.append(str(part))
    return tuple(keys)


def _is_tag(part: int | str, data: Any) -> bool:
    """Whether `part` is the union member that the entry `type` selects."""
    return isinstance(data, Mapping) and data.get("type") == part


def _explain(root: type, detail: Any, keys: tuple[str, ...], data: Any) -> str:
    key, kind, message = ".".join(keys), detail["type"], detail["msg"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = root
        for part in keys[:-1]:
            owner = _fields(owner).get(part)
            data = data[int(part) if isinstance(data, list) else part]
        chosen = data.get("type") if isinstance(data, Mapping) else None
        for slot in _slots(owner):
            if chosen in names(slot.kind):
                owner = named_part(slot.kind, chosen)
        return _unknown(keys, _fields(owner))
    if kind.startswith("missing"):
        return f"{key}: expected a value, because it has no default; got none"
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    if kind.startswith("union_tag"):
        tags, came = detail["ctx"].get("expected_tags"), detail["ctx"].get("tag")
        known = f"one of {tags}" if tags else "a text that says which kind it is"
        said = f"{key}.type: expected {known}, got {_show(came) if came else 'none'}"
        return said + _own_parts(root, keys, came)
    expected = _EXPECTED.get(kind) or message.removeprefix("Input should be ")
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = detail["ctx"][name]
        bound = bound if isinstance(bound, int) else f"{bound:g}"
        expected = f"a number {words} {bound}"
    said = f"{key}: expected {expected}, got {_show(detail['input'])}"
    of_type = kind == "literal_error" and keys[-1:] == ("type",)
    return said + (_own_parts(root, keys[:-1], detail["input"]) if of_type else "")


def _slots(kind: Any) -> list[Slot]:
    """Returns the slots in an annotation, if any."""
    extras = getattr(kind, "__metadata__", ())
    return [extra for extra in extras if isinstance(extra, Slot)]


def _own_parts(root: type, keys: tuple[str, ...], came: Any) -> str:
    """Returns a hint about the names of parts, for one that is not known."""
    owner: Any = root
    for key in keys:
        owner = _fields(owner).get(key)
    slots = _slots(owner)
    if not slots:
        return ""
    own = [n for n in names(slots[0].kind) if home(named_part(slots[0].kind, n))]
    known = f" (known so far: {', '.join(own)})" if own else ""
    similar = like(slots[0].kind, came) if isinstance(came, str) else ""
    return (
        f'{similar}; one of your own is known by its file: parts = ["chip.py"]{known}'
    )


def _unknown(keys: tuple[str, ...], known: Iterable[str]) -> str:
    above, siblings = ".".join(keys[:-1]), sorted(known)
    match = difflib.get_close_matches(keys[-1], siblings, n=1)
    if match and match[0] != keys[-1]:
        hint = f"did you mean {'.'.join((*keys[:-1], match[0]))}?"
    elif siblings:
        hint = f"expected one of: {', '.join(siblings)}"
    else:
        hint = f"{above} is a value and holds no keys"
    return f"unknown key {'.'.join(keys)}; {hint}"


def _shown(override: str) -> str:
    """Returns an override as given, or only its key if it is long."""
    text = override if len(override) <= 100 else f"{override.partition('=')[0]}=..."
    return f"--set {text}"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
