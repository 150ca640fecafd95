"""Types and conversions of configurations: validated, hashable, to and from TOML, JSON.

Every configuration is a keyword-only frozen dataclass that pydantic validates when it
is constructed; a wrong type, an invalid value or an unknown field is an error that
names the field.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    TypeAdapter,
)
from pydantic.fields import FieldInfo

from hwtrain._errors import InputError
from hwtrain._parts.part import CONFIG as CONFIG
from hwtrain._parts.part import configuration as configuration

MOST_CHIPS = 1_000_000
"""Upper limit of chips. Nobody looks at more seeds and results than these."""

MOST_COUNTED = 2**31 - 1
"""The largest count of JAX's int32."""

MOST = 1e12
"""Upper limit of numbers: squares and products of three of them fit in float32."""

_LEAST_OF_FLOAT32 = 2.0**-126


def _felt(value: float) -> float:
    """Raises for a nonzero number that float32, used throughout, takes for zero."""
    if 0 < abs(value) < _LEAST_OF_FLOAT32:
        raise InputError(
            f"expected 0 or at least {_LEAST_OF_FLOAT32:.3g} in size, because float32 "
            f"has nothing between; got {value:g}"
        )
    return value


def at_least(least: float) -> tuple[Any, Any]:
    """Returns the annotations of numbers with a lower bound, for checks and schemas."""

    def check(value: float) -> float:
        if value < least:
            raise InputError(f"expected a number of at least {least:g}, got {value:g}")
        return value

    check.__qualname__ = "at_least"  # documentation shows it
    return Field(gt=0, json_schema_extra={"minimum": least}), AfterValidator(check)


Felt = AfterValidator(_felt)

Number = Annotated[float, Field(ge=-MOST, le=MOST), Felt]
NonNegative = Annotated[float, Field(ge=0, le=MOST), Felt]
Positive = Annotated[float, Field(le=MOST), *at_least(1e-12)]

Share = Annotated[float, Field(ge=0, le=1), Felt]
PositiveShare = Annotated[float, Field(le=1), *at_least(1e-12)]
Deviation = Annotated[float, Field(ge=0, le=1000), Felt]
"""A relative standard deviation, or a factor on one."""

PositiveDeviation = Annotated[float, Field(le=1000), *at_least(1e-12)]
Exponent = Annotated[float, Field(ge=0, le=10), Felt]
"""A drift exponent, or its spread. At 10, a decade of time changes sizes by 10^10."""

SignedExponent = Annotated[float, Field(ge=-10, le=10), Felt]
Steps = Annotated[float, Field(ge=0, le=2**24), Felt]
"""The step of levels, or their number if above 1; float32 distinguishes up to 2^24."""

PositiveSteps = Annotated[float, Field(le=2**24), *at_least(1e-12)]

Size = Annotated[int, Field(gt=0, le=MOST_COUNTED)]
Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
Chips = Annotated[int, Field(gt=0, le=MOST_CHIPS)]


def _limit(value: Any) -> Any:
    if isinstance(value, int) and value <= 0:
        raise InputError(
            f"a tile has at least one row and one column, got {str(value)[:20]}; write "
            'None for no limit ("none" in TOML)'
        )
    return None if value == "none" else value


Limit = Annotated[
    Size | None,
    BeforeValidator(_limit),
    PlainSerializer(lambda value: "none" if value is None else value),
]
"""A size, or `None` for no limit, written as the string "none" in TOML."""

T = TypeVar("T")


def to_dict(configuration: Any) -> dict[str, Any]:
    """Returns a configuration as plain data that TOML and JSON can hold.

    `None` is left out, because TOML cannot represent it. It is the default wherever it
    is allowed, except for limits, for which "none" is written.

    >>> from hwtrain import Hardware, WeightClipParameter
    >>> to_dict(Hardware(clip=WeightClipParameter(type="layer_gaussian")))
    {'clip': {'type': 'layer_gaussian', 'sigma': 2.5, 'per_column': False}}
    """
    adapter = TypeAdapter(type(configuration))
    return without_none(adapter.dump_python(configuration, mode="json"))


def without_none(data: Any) -> Any:
    """Returns plain data without the entries of mappings that are `None`.

    Pydantic's `exclude_none` would also leave out a limit of `None`, which has to be
    written as "none", since a missing limit is read as its default.
    """
    if isinstance(data, dict):
        kept = {name: value for name, value in data.items() if value is not None}
        return {name: without_none(value) for name, value in kept.items()}
    return [without_none(value) for value in data] if isinstance(data, list) else data


def changed(configuration: Any, names: Iterable[str] | None = None) -> list[str]:
    """Returns the fields that differ from their default, as Python source.

    >>> from hwtrain import WeightClipParameter
    >>> changed(WeightClipParameter(type="layer_gaussian", sigma=2.0))
    ["type='layer_gaussian'", 'sigma=2.0']

    Args:
      configuration: the configuration.
      names: the fields to compare; `None` for all.
    """
    return [
        f"{field.name}={getattr(configuration, field.name)!r}"
        for field in dataclasses.fields(configuration)
        if (names is None or field.name in names)
        and getattr(configuration, field.name) != _default(field)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    # Pydantic wraps the default of an annotated field in a `FieldInfo`.
    default = field.default
    return default.default if isinstance(default, FieldInfo) else default


def from_dict(kind: type[T], data: dict[str, Any], *, plugins: bool = False) -> T:
    """Builds a configuration from plain data, as TOML and JSON contain it.

    >>> from hwtrain import Hardware
    >>> from_dict(Hardware, {"clip": {"type": "layer_gaussian"}}).clip.sigma
    2.5

    Args:
      kind: the configuration's class.
      data: its fields, nested.
      plugins: whether to import installed packages with an entry point in the group
        `hwtrain.parts`, to resolve a name that is not registered.

    Raises:
      pydantic.ValidationError: (a `ValueError`) for an unknown field, a wrong type or
        an invalid value; it names the field, the expected value and the given one.
    """
    # Through JSON, because only there strict validation accepts a list for a tuple.
    context = {"plugins": plugins}
    return TypeAdapter(kind).validate_json(json.dumps(data), context=context)
