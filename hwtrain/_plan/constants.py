"""Traced constants of hardware: puts arrays in the place of a plan's numbers."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from pydantic import TypeAdapter, ValidationError

from hwtrain._errors import InputError
from hwtrain._parts.calls import fault
from hwtrain._parts.constant import (
    Constant,
    filled,
    found_in,
    has_traced,
    replaced,
    split,
    static,
)
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.traceable import innermost, number_of_stage, part_of, refusal
from hwtrain._plan.weight import AnalogWeight

Constants = Mapping[str, ArrayLike]

_DRAWN = "it decides which elements are drawn, step by step, without a slope"
_NO_SLOPE = {
    "modifier.pdrop": _DRAWN,
    "modifier.pcm_prob_at_reset": _DRAWN,
    "modifier.pcm_prob_at_gmax": _DRAWN,
    "modifier.pcm_prob_at_random": _DRAWN,
    "modifier.pcm_zero_thres": _DRAWN,
    "stuck.at_g_min": _DRAWN,
    "stuck.at_g_max": _DRAWN,
    "mapping.weight_scaling_omega": "the mapping scale is a constant to gradients",
}
"""Numbers without a gradient, and why: a zero gradient would be silently wrong."""


def with_values(plan: Plan, constants: Constants, parts: tuple[str, ...]) -> Plan:
    """Returns a plan with traced values in place of numbers of its hardware.

    Args:
      plan: a plan.
      constants: values by key, as in `hwtrain.with_constants`.
      parts: the fields of `Hardware` that the caller reads.

    Raises:
      ValueError: for a key that matches no number, or a value that does not fit.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in constants.items():
        path = key.rpartition(":")[2]
        for weight in _reached(plan, key, parts):
            given = found.setdefault(weight.path, {})
            part, name = part_of(weight.hardware, path)
            if path in given or found_in(getattr(part, name)):
                raise InputError(
                    f"with_constants: {path} of {weight.path} is set by two keys, the "
                    f"second being {key!r}: leave one of them out"
                )
            given[path] = _value(key, part, name, value)
    for path, given in found.items():
        _check_conductances(plan[path], given)
        _check_temperatures(plan[path], given)
    weights = tuple(
        _with_hardware(weight, _set(weight.hardware, found.get(weight.path, {})))
        for weight in plan.weights
    )
    return dataclasses.replace(plan, weights=weights)


def merged(constants: Constants, others: Constants) -> dict[str, ArrayLike]:
    """Returns the union of both, as a new dict.

    Raises:
      ValueError: for a key that is in both.
    """
    for key in others:
        if key in constants:
            raise InputError(f"with_constants: {key!r} has a value already")
    return {**constants, **others}


def in_plan(plan: Plan, constants: Constants) -> Constants:
    """Returns the constants whose pattern matches in a plan.

    A method other than `__call__` may reach only some of a model's layers.
    """
    return {key: value for key, value in constants.items() if _matching(plan, key)}


def split_plan(plan: Plan) -> tuple[Plan, dict[str, tuple[jax.Array, ...]]]:
    """Returns a plan with holes in place of its traced values, and these by path.

    Args:
      plan: a plan, from `with_values` or without constants.
    """
    if not any(has_traced(weight.hardware) for weight in plan.weights):
        return plan, {}
    weights, values = [], {}
    for weight in plan.weights:
        hardware, of_weight = split(weight.hardware)
        if of_weight:
            values[weight.path] = of_weight
        weights.append(_with_hardware(weight, hardware))
    return dataclasses.replace(plan, weights=tuple(weights)), values


def joined_plan(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Inverse of `split_plan`."""
    if not values:
        return plan
    weights = tuple(filled_weight(w, values.get(w.path)) for w in plan.weights)
    return dataclasses.replace(plan, weights=weights)


def filled_weight(weight: AnalogWeight, values: Any) -> AnalogWeight:
    """Returns the plan of an array with the holes of its hardware filled.

    Args:
      weight: the plan of the array.
      values: the values in order, a sequence or `[places]`; `None` if there are none.
    """
    if values is None:
        return weight
    return _with_hardware(weight, filled(weight.hardware, values))


def _with_hardware(weight: AnalogWeight, hardware: Hardware) -> AnalogWeight:
    if hardware is weight.hardware:
        return weight
    return dataclasses.replace(weight, hardware=hardware)


def _matching(plan: Plan, key: str) -> list[AnalogWeight]:
    """Returns the weights that the pattern of a key matches; all without a pattern."""
    pattern, colon, _ = key.rpartition(":")
    if not colon:
        return list(plan.weights)

    def matches(weight: AnalogWeight) -> bool:
        layer = () if weight.kind == "raw" else (weight.layer_path,)
        return any(re.fullmatch(pattern, name) for name in (weight.path, *layer))

    return [weight for weight in plan.weights if matches(weight)]


def read_by(plan: Plan, key: str, parts: tuple[str, ...]) -> list[AnalogWeight]:
    """Returns the weights whose hardware has the number that a key names.

    Args:
      plan: a plan.
      key: as in `hwtrain.with_constants`.
      parts: the fields of `Hardware` that are read.
    """
    path = key.rpartition(":")[2]
    return [w for w in _matching(plan, key) if not refusal(w.hardware, path, parts)]


def _reached(plan: Plan, key: str, parts: tuple[str, ...]) -> list[AnalogWeight]:
    """Returns what `read_by` returns.

    Raises:
      ValueError: if there are none.
    """
    matching, reached = _matching(plan, key), read_by(plan, key, parts)
    if not matching:
        known = [weight.path for weight in plan.weights]
        raise InputError(
            f"with_constants: {key!r} matches no analog weight. A key is the path of a "
            "number, 'forward.out_noise', or a pattern for layers and the path, "
            f"'encoder/.*:forward.out_noise'; the weights are {known}"
        )
    if not reached:
        weight, path = matching[0], key.rpartition(":")[2]
        why = refusal(weight.hardware, path, parts)
        raise InputError(f"with_constants: {key!r} ({weight.path}): {why}")
    return reached


def _value(key: str, part: Any, name: str, value: ArrayLike) -> Any:
    """Returns constants in the place of a number or a tuple of numbers."""
    path, number = key.rpartition(":")[2], static(getattr(part, name))
    shape = np.shape(number)
    if np.shape(value) != shape:
        raise InputError(
            f"with_constants: {key!r} takes the shape {shape}, as its {number!r} has, "
            f"got {np.shape(value)}. To compute with several values, map over them "
            "with jax.vmap"
        )
    if not isinstance(value, Tracer):
        _check_value(key, part, name, value)
    array = jnp.asarray(value, jnp.float32)
    why = _NO_SLOPE.get(path) or getattr(part, "without_slope", {}).get(name)
    if why:
        array = _without_slope(array, key, why)

    def constants(number: Any, array: Any) -> Any:
        if isinstance(number, tuple):
            return tuple(constants(x, array[n]) for n, x in enumerate(number))
        return Constant(path, number, value=array)

    return constants(number, array)


def _check_value(key: str, part: Any, name: str, value: ArrayLike) -> None:
    """Raises for a value that the field does not accept."""
    given: Any = np.asarray(value, np.float64).tolist()
    try:
        _adapter(type(part), name).validate_python(given, strict=False)
    except ValidationError as error:
        raise InputError(f"with_constants: {key!r}: {fault(error)}") from error


@functools.cache
def _adapter(kind: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(kind, include_extras=True)[name])


def _without_slope(array: jax.Array, key: str, why: str) -> jax.Array:
    """Returns an array that raises when it is differentiated."""

    @jax.custom_jvp
    def identity(x: jax.Array) -> jax.Array:
        return x

    @identity.defjvp
    def slope(primals: Any, tangents: Any) -> Any:
        raise InputError(
            f"with_constants: there is no gradient to {key!r}: {why}. Give it as "
            "jax.lax.stop_gradient(value), or differentiate without it"
        )

    return identity(array)


def _check_conductances(weight: AnalogWeight, given: Mapping[str, Any]) -> None:
    """Raises if a converter and a noise model would get different ranges."""
    model = weight.hardware.noise_model
    for name in ("g_max", "g_min"):
        both = [f"{part}.{name}" for part in ("converter", "noise_model")]
        found = {path: x for path, x in given.items() if innermost(path) in both}
        half = len(set(map(innermost, found))) == 1 or _differ(found.values())
        if half and model is not None and hasattr(model, name):
            raise InputError(
                f"with_constants: {' and '.join(both)} of {weight.path} are one "
                "number: give both the same value"
            )


def _check_temperatures(weight: AnalogWeight, given: Mapping[str, Any]) -> None:
    """Raises if noise models around each other would get several temperatures."""
    path, model, paths = "noise_model", weight.hardware.noise_model, []
    while model is not None:
        if hasattr(model, "temperature_k"):
            paths.append(f"{path}.temperature_k")
        path, model = f"{path}.noise_model", getattr(model, "noise_model", None)
    found = [given[each] for each in paths if each in given]
    if 0 < len(found) < len(paths) or _differ(found):
        raise InputError(
            f"with_constants: {' and '.join(map(repr, paths))} of {weight.path} are "
            "one number, because a chip is at one temperature: give all of them the "
            "same value"
        )


def _differ(constants: Iterable[Any]) -> bool:
    """Whether constants have several values, as far as these are known."""
    values = [x.value for x in constants if not isinstance(x.value, Tracer)]
    return any(not np.allclose(x, values[0], rtol=1e-6, atol=0) for x in values)


def _set(hardware: Hardware, given: Mapping[str, Any]) -> Hardware:
    """Returns hardware with constants in place of numbers, without validation."""
    for path, value in given.items():
        hardware = _replaced(hardware, path.split("."), value)
    return hardware


def _replaced(at: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(at, tuple):
        chosen = number_of_stage(at, step)
        new = _replaced(at[chosen], rest, value)
        return (*at[:chosen], new, *at[chosen + 1 :])
    new = _replaced(getattr(at, step), rest, value)
    return replaced(at, **{step: new})
