"""Reads a configuration and turns any error in it into one clear line."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from hwtrain._errors import InputError
from hwtrain._parts.fields import from_dict
from hwtrain._parts.registry import like, names
from hwtrain._parts.registry import named as named_part
from hwtrain._parts.slot import home
from hwtrain._parts.source import load_parts
from hwtrain.train._config import METRIC_NAME, Config
from hwtrain.train._entries import EntryError, named
from hwtrain.train._hardware import written_out
from hwtrain.train._mismatch_config import MismatchConfig, kind_of
from hwtrain.train._overrides import (
    entry_type,
    parse_override,
    put,
    show,
    shown,
    slots,
    split_override,
    unknown,
)
from hwtrain.train._toml import parsed

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


def read_config(
    path: str | Path, overrides: Sequence[str] = ()
) -> Config | MismatchConfig:
    """Reads a TOML file, applies the overrides and validates the result.

    A file with a table `[mismatch]` is a `MismatchConfig`.

    Args:
      path: the file.
      overrides: strings `"key=value"`. The key is a path of names joined by dots, the
        value is written as in TOML: `"training.steps=100"`. An entry of a list has its
        index as name: `"rules.0.forward.out_bits=6"`.

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
            keys, value = parse_override(kind, override)
            put(data, keys, value, override)
            origin[keys] = override
        import_parts(data, Path(path).parent)
        written = written_out(data, Path(path).parent)
    except EntryError as error:
        raise located(error, path, tuple(origin.values())) from error
    try:
        return from_dict(kind, _as_json(written), plugins=True)
    except pydantic.ValidationError as error:
        raise InputError(one_line(kind, error, data, str(path), origin)) from None


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


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(other) for other in path.parent.glob("*.toml")]
        match = difflib.get_close_matches(str(path), siblings, n=1)
        hint = f"; did you mean {match[0]}?" if match else ""
        raise InputError(
            f"{path}: expected a TOML file, got no such file{hint}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file, got: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: expected valid TOML, got: {error}") from None


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
    """Returns all errors of a configuration in one line, the causes first.

    Args:
      kind: the class of the configuration.
      error: all errors.
      data: the configuration as it was given.
      file: where it was given.
      origin: by their path, the overrides of entries.
    """
    # A misspelt key makes the right one missing too; report the cause first.
    details = sorted(error.errors(), key=lambda detail: detail["type"] == "missing")
    said: dict[tuple[str, ...], str] = {}
    last = None
    for detail in details:
        keys = _key_path(detail["loc"], data)
        # A message about the whole configuration names its key itself.
        named = keys or _words(detail["msg"])
        if named in said:
            continue  # the same value, as another member of a union
        place = _place(file, origin, named)
        where = "" if place == last else f"{place}: "
        said[named] = where + _explain(kind, detail, keys, data)
        last = place
    return "; also: ".join(said.values())


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
            place = shown(override)
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
    keys = {split_override(override)[0]: override for override in overrides}
    place = _place(str(path), keys, tuple(error.key.split(".")))
    return InputError(f"{place}: {error}")


def _key_path(loc: tuple[int | str, ...], data: Any) -> tuple[str, ...]:
    """Returns the keys that the user wrote; pydantic adds members of unions."""
    keys, in_pair = [], False
    for index, part in enumerate(loc):
        if in_pair:
            in_pair = False
            continue  # the place of the name or the value in a pair
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, Mapping) and isinstance(part, int) and part < len(data):
            # Pydantic checks a table with free names as a list of pairs.
            part, in_pair = list(data)[part], True
            data = data[part]
        elif isinstance(part, int) and not isinstance(data, Mapping | list):
            continue
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
            owner = entry_type(owner, part)
            data = data[int(part) if isinstance(data, list) else part]
        chosen = data.get("type") if isinstance(data, Mapping) else None
        for slot in slots(owner):
            if chosen in names(slot.kind):
                owner = named_part(slot.kind, chosen)
        return unknown(keys, owner)
    if kind.startswith("missing"):
        return f"{key}: expected a value, because it has no default; got none"
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    if kind.startswith("union_tag"):
        tags, came = detail["ctx"].get("expected_tags"), detail["ctx"].get("tag")
        known = f"one of {tags}" if tags else "a text that says which kind it is"
        said = f"{key}.type: expected {known}, got {show(came) if came else 'none'}"
        return said + _own_parts(root, keys, came)
    expected = _EXPECTED.get(kind) or message.removeprefix("Input should be ")
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == METRIC_NAME:
        expected = "a name of letters, digits and _ that begins with a letter"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = detail["ctx"][name]
        bound = bound if isinstance(bound, int) else f"{bound:g}"
        expected = f"a number {words} {bound}"
    said = f"{key}: expected {expected}, got {show(detail['input'])}"
    of_type = kind == "literal_error" and keys[-1:] == ("type",)
    return said + (_own_parts(root, keys[:-1], detail["input"]) if of_type else "")


def _own_parts(root: type, keys: tuple[str, ...], came: Any) -> str:
    """Returns a hint about the names of parts, for one that is not known."""
    owner: Any = root
    for key in keys:
        owner = entry_type(owner, key)
    found = slots(owner)
    if not found:
        return ""
    kind = found[0].kind
    own = [n for n in names(kind) if home(named_part(kind, n))]
    known = f" (known so far: {', '.join(own)})" if own else ""
    similar = like(kind, came) if isinstance(came, str) else ""
    return (
        f'{similar}; one of your own is known by its file: parts = ["chip.py"]{known}'
    )
