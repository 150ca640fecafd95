"""Words for what is wrong with a call of a configuration's class."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jax.core import Tracer
from pydantic import ValidationError

from hwtrain._parts.reference_names import counterpart
from hwtrain._parts.wording import (
    by_keys,
    choices,
    closest,
    listed,
    suggestion,
    worded,
)

_EXPECTED = {
    "bool_type": "True or False",
    "string_type": "a string",
    "tuple_type": "a tuple",
}
"""What pydantic expected, in Python's terms."""

_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_NO_PART = (
    *("dataclass_type", "dataclass_exact_type", "model_attributes_type"),
    *("union_tag_invalid", "union_tag_not_found"),
)


def refused(kind: type, error: ValidationError, fields: Mapping[str, Any]) -> str:
    """Returns all that is wrong with a call of a configuration's class, one a line.

    Args:
      kind: the class.
      error: what pydantic found.
      fields: the keyword arguments.
    """
    details = error.errors(include_url=False)
    by_place = [x for x in details if x["type"] == "unexpected_positional_argument"]
    lines = [f"{kind.__name__}: {_by_place(kind, x['input'])}" for x in by_place]
    for keys, found in by_keys(error, fields).items():
        if found[0] in by_place:
            continue
        place = f"{kind.__name__}({_path(keys)}=)" if keys else kind.__name__
        lines += [f"{place}: {line}" for line in _said(kind, keys, found).splitlines()]
    return "\n".join(lines)


def no_part(kinds: Sequence[type], came: Any) -> str:
    """Returns what was expected, what came and what may be meant, for an object.

    >>> from hwtrain import WeightClipParameter
    >>> no_part([WeightClipParameter], "copy")
    "expected an object of WeightClipParameter, got 'copy'"

    Args:
      kinds: the classes whose objects are taken.
      came: what is no object of them.
    """
    by_name = {kind.__name__: kind for kind in kinds}
    calls = {name: f"{name}()" for name in by_name}
    types = {name: call for kind in kinds for name, call in _calls(kind).items()}
    name: Any = came.get("type") if isinstance(came, Mapping) else came
    name = name.__name__ if isinstance(name, type) else name
    hint = ""
    for known in (types, calls) if isinstance(name, str) else ():
        match = closest(name, known)
        hint = hint or (f"; did you mean {known[match]}?" if match else "")
    expected = listed(sorted(by_name))
    return f"expected an object of {expected}, got {shown(came)}{hint}"


def fault(error: ValidationError) -> str:
    """Returns what is wrong with a value by itself, the first fault."""
    return worded(error.errors(include_url=False)[:1], _EXPECTED, shown)


def shown(value: Any) -> str:
    """Returns a value as Python writes it, in one line, cut if it is long.

    >>> shown("a" * 80), shown(dict)
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...", 'the class dict')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as that of an int of more than 4300 digits
        return f"a value of {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _said(kind: type, keys: tuple[int | str, ...], details: list[Any]) -> str:
    detail = details[0]
    of_type, came = detail["type"], detail["input"]
    if of_type in _UNKNOWN:
        return _unknown(kind, keys)
    known: Any = kind
    classes = _classes(known.__pydantic_fields__[keys[0]].annotation) if keys else []
    if of_type in _NO_PART and classes:
        return no_part(classes, came)
    said = worded(details, _EXPECTED, shown)
    if of_type == "literal_error":
        return said + suggestion(came, choices(detail))
    if of_type not in ("float_type", "int_type"):
        return said
    if isinstance(came, Tracer):
        return f"{said}; traced numbers are given by hwtrain.with_constants"
    if getattr(came, "shape", None) == ():
        return f"{said}; make it a number of Python: {of_type.partition('_')[0]}(...)"
    return said


def _unknown(kind: Any, keys: tuple[int | str, ...]) -> str:
    name, known = str(keys[-1]), _names(kind)
    if keys != (name,):
        return "unknown entry"
    match = closest(name, known)
    hint = f"expected one of: {', '.join(known)}" if known else "it takes no fields"
    hint = f"did you mean {match}?" if match else hint
    return f"unknown field; {counterpart(kind, name) or hint}"


def _by_place(kind: Any, came: Any) -> str:
    first = [f"such as {kind.__name__}({name}=...)" for name in _names(kind)[:1]]
    return ", ".join(["expected fields by name only", *first, f"got {shown(came)}"])


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _path(keys: tuple[int | str, ...]) -> str:
    return "".join([str(keys[0]), *(f"[{key!r}]" for key in keys[1:])])


def _classes(hint: Any) -> list[type]:
    """Returns the configurations in an annotation."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [kind for inner in typing.get_args(hint) for kind in _classes(inner)]


def _calls(kind: Any) -> dict[str, str]:
    """Returns how objects of a class are made, by their type."""
    field = kind.__pydantic_fields__.get("type")
    types = [x for x in typing.get_args(field and field.annotation)]
    if len(types) > 1:
        return {name: f"{kind.__name__}(type={name!r})" for name in types}
    registered = getattr(kind, "_registered", ("", ""))[1]
    return {name: f"{kind.__name__}()" for name in (*types, registered) if name}
