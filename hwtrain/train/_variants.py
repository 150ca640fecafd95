"""Other hardware for a trained model: what a study varies."""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from hwtrain._errors import InputError
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.train._config import Config
from hwtrain.train._hardware import NONE, over
from hwtrain.train._reading import one_line
from hwtrain.train._toml import parsed

Varied = Mapping[str, Sequence[Any]]
"""Values by key: the path of an entry within the tables of hardware."""


def parse_varied(texts: Sequence[str], option: str) -> dict[str, tuple[Any, ...]]:
    """Returns the values of each key, given as `KEY=VALUE,VALUE,...`.

    >>> parse_varied(["forward.out_bits=4,6", "noise_model=pcm_like,none"], "--vary")
    {'forward.out_bits': (4, 6), 'noise_model': ('pcm_like', 'none')}

    Args:
      texts: values are written as in TOML; text without quotes is taken as it is.
      option: where they were given, for messages.

    Raises:
      ValueError: for a text of another form, or a key that comes twice.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise InputError(
                f"{option} {text}: expected KEY=VALUE,VALUE,..., such as "
                "forward.out_bits=4,6,8"
            )
        if key in found:
            raise InputError(f"{option} {text}: {key} is given twice; write one list")
        found[key] = tuple(_values(values))
    return found


def _values(text: str) -> Iterator[Any]:
    try:
        yield from parsed(tomllib.loads, f"values = [{text}]")["values"]
    except ValueError:
        for word in text.split(","):
            try:
                yield parsed(tomllib.loads, f"value = {word.strip()}")["value"]
            except ValueError:
                yield word.strip()


def combinations(varied: Varied) -> list[dict[str, Any]]:
    """Returns all combinations of values, those of the last key changing fastest.

    >>> combinations({"a": (1, 2), "b": (3,)})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    rows = itertools.product(*varied.values())
    return [dict(zip(varied, row)) for row in rows]


def with_entries(config: Config, entries: Mapping[str, Any], option: str) -> Config:
    """Returns a configuration with other entries in the hardware of all layers.

    As for a preset, a table of the same `type` changes the keys that it names, another
    one takes the place of the whole table, and `"none"` leaves a table out. Text in the
    place of a table is its type. Hardware without the table of an entry has nothing to
    change, unless the entry is a table itself.

    Args:
      config: the configuration.
      entries: values by key, within the tables of hardware.
      option: where they were given, for messages.

    Raises:
      ValueError: one line that names the key, for one that is nowhere, or a value that
        does not fit.
    """
    data = to_dict(config)
    tables = [data["hardware"]]
    tables += [r["hardware"] for r in data["rules"] if r.get("hardware") is not None]
    for key, value in entries.items():
        if not sum(_set(table, key.split("."), value) for table in tables):
            raise InputError(
                f"{option} {key}: no layer's hardware has this entry; it has "
                f"{', '.join(sorted(set(itertools.chain(*tables))))}"
            )
    try:
        return from_dict(Config, data, plugins=True)
    except pydantic.ValidationError as error:
        shown = ", ".join(f"{key}={value}" for key, value in entries.items())
        raise InputError(
            one_line(Config, error, data, f"{option} {shown}", {})
        ) from None


def require_effect(config: Config, key: str, option: str) -> None:
    """Raises a `ValueError` for an entry that a chip in use does not depend on.

    Args:
      config: the configuration.
      key: the entry, within the tables of hardware.
      option: where it was given, for the message.
    """
    part = key.partition(".")[0]
    quiet = part == "modifier" and not any(x.modifies("chip") for x in config.chips)
    if quiet or part in _OF_TRAINING:
        raise InputError(
            f"{option} {key} would change nothing, because the {part} acts in training "
            "only; vary it in a sweep of trainings: hwtrain sweep"
        )


def _set(table: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    """Sets an entry in a table, and returns whether there is a place for it."""
    *above, key = keys
    if not above:
        if key not in _TABLES:
            return False
        if value == NONE:
            table.pop(key, None)
            return True
        value = {"type": value} if isinstance(value, str) else value
    inner: Any = table
    for step in above:
        if isinstance(inner, list):
            inside = step.isdecimal() and int(step) < len(inner)
            inner = inner[int(step)] if inside else None
        else:
            inner = inner.get(step)
        if not isinstance(inner, dict | list):
            return False
    if isinstance(inner, list):
        return False
    inner.update(over(inner, {key: value}))
    return True


_OF_TRAINING = ("clip", "remap", "drift", "input_range")
_TABLES = tuple(Hardware.__dataclass_fields__)
