"""Words for what pydantic finds wrong with a value, for files and for Python."""

import difflib
import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

SOURCE = r"^.+:[A-Za-z_]\w*$"
NAMED = r"^([a-z_]+|.+:[A-Za-z_]\w*)$"
METRIC_NAME = r"^[^\W\d]\w*$"

_PATTERNS = {
    SOURCE: '"path/to/file.py:function" or "module:function"',
    NAMED: '"path/to/file.py:function" or "module:function"',
    METRIC_NAME: "a name of letters, digits and _ that begins with a letter",
}
"""What the patterns of text stand for."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
}

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "greater than or equal to"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "less than or equal to"),
}

_LENGTHS = {
    "too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
}


def closest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that may be meant; empty if none is similar.

    That is the most similar one, or the only one that the name begins.

    >>> closest("ADD_NORML", ["add_normal", "copy"]), closest("pcm", ["pcm_like"])
    ('add_normal', 'pcm_like')
    """
    lower = {other.lower(): other for other in known}
    match = difflib.get_close_matches(name.lower(), lower, n=1)
    if not match and len(name) > 2:
        match = [other for other in lower if other.startswith(name.lower())]
    return lower[match[0]] if len(match) == 1 else ""


def suggestion(came: Any, known: Iterable[str]) -> str:
    """Returns the hint `; did you mean ...?`; empty if no known name is similar.

    >>> suggestion("add_norml", ["add_normal", "copy"])
    "; did you mean 'add_normal'?"

    Args:
      came: a name, or a member of an enumeration, as the reference libraries have them.
      known: the names.
    """
    name = came.name if isinstance(came, enum.Enum) else came
    match = closest(name, known) if isinstance(name, str) else ""
    return f"; did you mean {match!r}?" if match else ""


def by_keys(error: ValidationError, data: Any) -> dict[tuple[int | str, ...], list]:
    """Returns the details of an error by the keys that the user wrote.

    Causes are first: a misspelt key makes the right one missing too. The details of one
    key are what the members of a union say about the same value.

    Args:
      error: the error.
      data: what was validated.
    """
    found: dict[tuple[int | str, ...], list] = {}
    details = error.errors(include_url=False)
    for detail in sorted(details, key=lambda detail: detail["type"] == "missing"):
        if _long_enough(detail):
            continue
        found.setdefault(_keys(detail["loc"], data), []).append(detail)
    return found


def _long_enough(detail: Any) -> bool:
    """Whether only wrong entries make a list too short: pydantic counts valid ones."""
    if detail["type"] != "too_short":
        return False
    came = detail["input"]
    least = detail["ctx"]["min_length"]
    return isinstance(came, list | tuple) and len(came) >= least


def _keys(loc: tuple[int | str, ...], data: Any) -> tuple[int | str, ...]:
    """Returns the keys that the user wrote; pydantic adds members of unions."""
    keys: list[int | str] = []
    in_pair = False
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
        elif isinstance(data, list | tuple):
            if not isinstance(part, int) or part >= len(data):
                continue
            data = data[part]
        elif not isinstance(data, Mapping):
            continue
        elif index < len(loc) - 1 or data.get("type") == part:
            continue  # the union member that the entry `type` selects
        keys.append(part)
    return tuple(keys)


def worded(
    details: Sequence[Any], terms: Mapping[str, str], show: Callable[[Any], str]
) -> str:
    """Returns what is wrong with a value: what was expected, and what came.

    Args:
      details: those of the value's key, from `by_keys`.
      terms: what was expected, by pydantic's type of the error, where Python and files
        have other words for it.
      show: returns a value as it is written.
    """
    kind, message = details[0]["type"], details[0]["msg"]
    if kind.startswith("missing"):
        return "expected a value, because it has no default; got none"
    if kind in ("value_error", "assertion_error"):
        return message.partition(", ")[2]
    came = show(details[0]["input"])
    expected = dict.fromkeys(_expected(detail, terms) for detail in details)
    if not all(expected):
        return f"{message}; got {came}"  # of a user's own part
    return f"expected {listed(expected)}, got {came}"


def show(value: Any) -> str:
    """Returns a value as files have it, in one line, cut if it is long.

    >>> show([True, None]), show("a" * 80)
    ('[true, null]', '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...')
    """
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choices(detail: Any) -> list[str]:
    """Returns the names that an entry may have, from the detail of an error."""
    context = detail.get("ctx", {})
    known = context.get("expected") or context.get("expected_tags") or ""
    return re.findall(r"'([^']*)'", str(known))


def listed(words: Iterable[str], last: str = "or") -> str:
    """Returns words as a list in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b or c'
    """
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def _expected(detail: Any, terms: Mapping[str, str]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return f"a number {words} {bound if isinstance(bound, int) else f'{bound:g}'}"
    if kind in _LENGTHS:
        name, words = _LENGTHS[kind]
        number = context[name]
        entries = {1: "one entry"}.get(number, f"{number} entries")
        return f"{words} {entries}"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return _PATTERNS.get(pattern, f"text that matches {pattern}")
    if kind in terms or kind in _EXPECTED:
        return {**_EXPECTED, **terms}[kind]
    _, _, words = detail["msg"].partition(" should ")
    return words.removeprefix("be ").removeprefix("have ")
