"""How hardware is described: frozen, validated, hashable, to and from TOML and JSON.

Every configuration is a keyword-only frozen dataclass that pydantic validates when it
is constructed; a wrong type, an impossible value or an unknown field is an error that
names the field.
"""

import json
from typing import Annotated, Any, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
)

CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
)

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Limit = Annotated[
    Size | None,
    BeforeValidator(lambda value: None if value == "none" else value),
    PlainSerializer(lambda value: "none" if value is None else value),
]
"""A size, or `None` for no limit, which TOML writes as the string "none"."""

T = TypeVar("T")


def to_dict(configuration: Any) -> dict[str, Any]:
    """Returns a configuration as plain data that TOML and JSON can hold.

    `None` is left out, because TOML cannot say it; it is the default wherever it is
    allowed, but for limits, which say "none".

    >>> from hwtrain.hardware import Hardware, WeightClipParameter
    >>> to_dict(Hardware(clip=WeightClipParameter(type="layer_gaussian")))
    {'clip': {'type': 'layer_gaussian', 'sigma': 2.5, 'per_column': False}}
    """
    adapter = TypeAdapter(type(configuration))
    return _without_none(adapter.dump_python(configuration, mode="json"))


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if value is not None
    }


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """Builds a configuration from plain data, as TOML and JSON give it.

    >>> from hwtrain.hardware import Hardware
    >>> from_dict(Hardware, {"clip": {"type": "layer_gaussian"}}).clip.sigma
    2.5

    Args:
      kind: the configuration's class.
      data: its fields, nested.

    Raises:
      pydantic.ValidationError: (a `ValueError`) for an unknown field, a wrong type or
        an impossible value; it names the field, what was expected and what came.
    """
    # By way of JSON, because strict validation takes a list for a tuple only there.
    return TypeAdapter(kind).validate_json(json.dumps(data))
