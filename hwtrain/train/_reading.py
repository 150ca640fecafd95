"""Reads a configuration and turns any error in it into one clear line."""

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
from hwtrain._parts.wording import (
    by_keys,
    choices,
    closest,
    show,
    suggestion,
    worded,
)
from hwtrain.train._config import Config
from hwtrain.train._entries import EntryError, named
from hwtrain.train._hardware import written_out
from hwtrain.train._mismatch_config import MismatchConfig, kind_of
from hwtrain.train._overrides import (
    entry_type,
    parse_override,
    put,
    shown,
    slots,
    split_override,
    unknown,
)
from hwtrain.train._toml import parsed

_EXPECTED = {
    **dict.fromkeys(("dataclass_type", "dict_type"), "a table"),
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
"""What pydantic expected, in TOML's terms."""

_LONGEST = 400
"""Most characters of errors in one line, beside the first one."""


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
        match = closest(str(path), siblings)
        hint = f"; did you mean {match}?" if match else ""
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
    """Returns the errors of a configuration in one line, the causes first.

    Of a long line, the last errors are counted only.

    Args:
      kind: the class of the configuration.
      error: all errors.
      data: the configuration as it was given.
      file: where it was given.
      origin: by their path, the overrides of entries.
    """
    said: list[str] = []
    last, length = None, 0
    found = by_keys(error, data)
    for path, details in found.items():
        keys = tuple(map(str, path))
        # A message about the whole configuration names its key itself.
        place = _place(file, origin, keys or _words(details[0]["msg"]))
        where = "" if place == last else f"{place}: "
        text = _explain(kind, details, keys, data)
        length += len(text)
        if said and length > _LONGEST:
            left = len(found) - len(said)
            said.append(f"{left} more errors" if left > 1 else "one more error")
            break
        said.append(where + text)
        last = place
    return "; also: ".join(said)


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


def _explain(root: type, details: list[Any], keys: tuple[str, ...], data: Any) -> str:
    key, detail = ".".join(keys), details[0]
    kind = detail["type"]
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
    if kind.startswith("union_tag"):
        tags, came = detail["ctx"].get("expected_tags"), detail["ctx"].get("tag")
        known = f"one of {tags}" if tags else "a text that says which kind it is"
        said = f"{key}.type: expected {known}, got {show(came) if came else 'none'}"
        return said + (
            _own_parts(root, keys, came) or suggestion(came, choices(detail))
        )
    said = worded(details, _EXPECTED, show)
    if kind == "literal_error":
        own = keys[-1:] == ("type",) and _own_parts(root, keys[:-1], detail["input"])
        said += own or suggestion(detail["input"], choices(detail))
    return f"{key}: {said}" if key else said


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
