"""Reads the text of TOML and JSON, whatever it is, and writes values of TOML."""

import itertools
import json
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from hwtrain._errors import InputError

_DEEPEST = 20
"""Largest nesting of tables and lists; a configuration has five levels at most."""


def parsed(loads: Callable[[str], Any], text: str) -> Any:
    """Returns the data in a text, read by `json.loads` or `tomllib.loads`.

    >>> try:
    ...     parsed(json.loads, "[" * 100_000)
    ... except ValueError as error:
    ...     print(error)
    tables or lists are nested too deeply

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
        raise InputError("tables or lists are nested too deeply") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError):
        raise
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise InputError("a number has thousands of digits") from None


def as_toml(value: Any) -> str:
    """Returns a value as TOML writes it in one line.

    >>> as_toml({"type": "hermes", "g_max": 25, "on": [True, 0.5]})
    '{type = "hermes", g_max = 25, on = [true, 0.5]}'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        entries = (f"{key} = {as_toml(inner)}" for key, inner in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _depth(data: Any) -> int:
    """Returns how deeply tables and lists are nested."""
    depth, level = 0, [data]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = list(itertools.chain.from_iterable(parts))
    return depth
