"""Unambiguous JSON: UTF-8, unique keys, finite numbers, no missing fields."""

import json
import math
from typing import Any

from hwtrain._errors import InputError


def parse(data: bytes) -> Any:
    """Returns the data in JSON.

    >>> try:
    ...     parse(b'{"a": 1, "a": 2}')
    ... except ValueError as error:
    ...     print(error)
    the key 'a' occurs twice in one object

    Raises:
      ValueError: if it is not JSON, or readers could interpret it differently.
    """
    # Given bytes, json.loads would guess UTF-16 and UTF-32 as well.
    text = data.decode("utf-8")
    content = json.loads(
        text,
        object_pairs_hook=_unique,
        parse_float=_finite,
        parse_constant=_finite,
        parse_int=_whole,
    )
    if "\\u" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError("it holds half of a surrogate pair") from error
    return content


def difference(found: Any, expected: Any, where: str = "") -> str | None:
    """Returns the first difference of two JSON values as text; `None` if equal.

    >>> difference({"a": [1.0]}, {"a": [1], "b": 2})
    'b: is missing'
    """
    if found == expected:
        return None
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            at = f"{where}.{key}".lstrip(".")
            if key not in found:
                return f"{at}: is missing"
            if key not in expected:
                return f"{at}: is not allowed"
            problem = difference(found[key], expected[key], at)
            if problem is not None:
                return problem
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where}: has {len(found)} entries, not {len(expected)}"
        for index, pair in enumerate(zip(found, expected)):
            problem = difference(*pair, f"{where}.{index}")
            if problem is not None:
                return problem
    return f"{where}: should be {expected!r}, got {found!r}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"the key {name[:80]!r} occurs twice in one object")
        found[name] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"{text[:80]} is not a finite number")
    return number


def _whole(text: str) -> int:
    # Far beyond 64 bits, but far below numbers that Python parses slowly or refuses.
    if len(text) > 40:
        raise InputError(f"{text[:40]}... is a number of {len(text)} digits")
    return int(text)
