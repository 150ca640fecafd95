"""Constants of hardware as traced values: which number of a plan is which array."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from pydantic import TypeAdapter, ValidationError

from hwtrain._parts.constant import (
    Constant,
    filled,
    found_in,
    has_traced,
    replaced,
    split,
    static,
)
from hwtrain.hardware import Hardware
from hwtrain.plan import AnalogWeight, Plan

Constants = Mapping[str, ArrayLike]

IN_A_CALL = ("modifier", "forward", "mapping")
"""The parts of hardware that a call of a model reads."""

OF_A_CHIP = (
    *("modifier", "forward", "mapping", "mismatch", "converter", "noise_model"),
    *("drift_compensation", "stuck"),
)
"""Those that programming, mismatch and the reads of a chip read."""

_IN_AN_UPDATE = "is read by the optimiser, which is compiled with it"
_HOW_OFTEN = "says how often a tile is read again, which a program is compiled for"
_STATIC = {
    "clip": _IN_AN_UPDATE,
    "remap": _IN_AN_UPDATE,
    "drift": _IN_AN_UPDATE,
    "input_range": _IN_AN_UPDATE,
    "forward.nm_decay": _IN_AN_UPDATE,
    "forward.max_bm_factor": _HOW_OFTEN,
    "forward.max_bm_res": _HOW_OFTEN,
    "noise_model.acceptance_range": "names one of two measurements",
}
"""Fields that stay static, by the beginning of their path, and why."""

_OF_CURVES = "belongs to curves whose sum must be a line, which is checked beforehand"

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
"""Fields without a gradient, and why: a gradient of zero would be wrong, unsaid."""

_PLAIN = ("g_min", "v_offset_w_min")
"""Numbers whose zero turns nothing off."""


def with_values(plan: Plan, constants: Constants, parts: tuple[str, ...]) -> Plan:
    """Returns a plan whose hardware has traced values in the place of numbers.

    Args:
      plan: a plan.
      constants: by key, as `hwtrain.with_constants` takes them.
      parts: the fields of `Hardware` that are read in what follows.

    Raises:
      ValueError: for a key that reaches nothing, or a value that does not fit.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in constants.items():
        pattern, _, path = key.rpartition(":")
        weights = [w for w in plan.weights if not pattern or _matches(pattern, w)]
        if not weights:
            known = [weight.path for weight in plan.weights]
            raise ValueError(
                f"with_constants: {key!r} matches no analog weight. A key is the path "
                "of a field, such as 'forward.out_noise', or 'encoder/.*:forward."
                f"out_noise' with a pattern for layers; the weights are {known}"
            )
        reached, refused = [], ""
        for weight in weights:
            why = _refusal(weight, path, parts)
            if why:
                refused = refused or f"{why} ({weight.path})"
            else:
                reached.append(weight)
        if not reached:
            raise ValueError(f"with_constants: {key!r}: {refused}")
        for weight in reached:
            given = found.setdefault(weight.path, {})
            if path in given or _is_traced(weight.hardware, path):
                raise ValueError(
                    f"with_constants: two keys give {path} of {weight.path}, the last "
                    f"of them {key!r}: leave one of them out"
                )
            part, name = _part(weight.hardware, path)
            given[path] = _value(key, part, name, value, _NO_SLOPE.get(path))
    for path, given in found.items():
        _check_conductances(plan[path], given)
    weights = tuple(
        _with_hardware(weight, _set(weight.hardware, found[weight.path]))
        if weight.path in found
        else weight
        for weight in plan.weights
    )
    return dataclasses.replace(plan, weights=weights)


def split_plan(plan: Plan) -> tuple[Plan, dict[str, tuple[jax.Array, ...]]]:
    """Returns a plan with holes for what is traced in it, and the values by path.

    Args:
      plan: a plan, of `with_values` or without constants.
    """
    if not any(has_traced(weight.hardware) for weight in plan.weights):
        return plan, {}
    weights, values = [], {}
    for weight in plan.weights:
        hardware, of_weight = split(weight.hardware)
        if of_weight:
            weight = _with_hardware(weight, hardware)
            values[weight.path] = of_weight
        weights.append(weight)
    return dataclasses.replace(plan, weights=tuple(weights)), values


def joined_plan(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Undoes `split_plan`."""
    if not values:
        return plan
    weights = tuple(filled_weight(w, values.get(w.path)) for w in plan.weights)
    return dataclasses.replace(plan, weights=weights)


def filled_weight(weight: AnalogWeight, values: Any) -> AnalogWeight:
    """Returns the plan of an array with values in the holes of its hardware.

    Args:
      weight: the plan of the array.
      values: the values by their places, a sequence or `[places]`; `None` for none.
    """
    if values is None:
        return weight
    return _with_hardware(weight, filled(weight.hardware, values))


def merged(constants: Constants, others: Constants) -> dict[str, ArrayLike]:
    """Returns both, as a dict of its own.

    Raises:
      ValueError: for a key of both.
    """
    for key in others:
        if key in constants:
            raise ValueError(f"with_constants: {key!r} has a value already")
    return {**constants, **others}


def in_plan(plan: Plan, constants: Constants) -> Constants:
    """Returns those constants whose pattern matches in a plan.

    A method other than `__call__` may reach some of a model's layers only.
    """
    return {
        key: value
        for key, value in constants.items()
        if any(_matches(key.rpartition(":")[0] or ".*", w) for w in plan.weights)
    }


def _with_hardware(weight: AnalogWeight, hardware: Hardware) -> AnalogWeight:
    return dataclasses.replace(weight, hardware=hardware)


def _matches(pattern: str, weight: AnalogWeight) -> bool:
    names = [weight.path]
    if weight.kind != "raw":
        names.append(weight.layer_path)
    return any(re.fullmatch(pattern, name) for name in names)


def _refusal(weight: AnalogWeight, path: str, parts: tuple[str, ...]) -> str:
    """Returns why a field of a weight's hardware cannot be traced, or nothing."""
    for known, why in _STATIC.items():
        if f"{path}.".startswith(f"{known}."):
            return f"{path} {why}: it stays static"
    first, names = (
        path.partition(".")[0],
        [x.name for x in dataclasses.fields(Hardware)],
    )
    if first not in names:
        return f"hardware has no part {first!r}; it has {', '.join(names)}"
    if first not in parts:
        taker = "a plan, which apply_mismatch and program_chip take"
        if parts != IN_A_CALL:
            taker = "the analog model"
        return f"{first} is not read here, where {', '.join(parts)} are: give it to {taker}"
    chip = weight.hardware
    if parts == IN_A_CALL:
        if path == "mapping.weight_scaling_omega" and chip.stores_scale:
            return (
                f"{path} was read when the mapping scale was stored beside the weights"
            )
    elif first == "modifier" and not chip.rounds_chips:
        return "a chip is not programmed through this modifier: give it to the model"
    elif first == "forward" and not _measures_responses(chip):
        return (
            "a chip's programming reads the periphery only to compensate drift through "
            "it: give it to the model"
        )
    if path == "modifier.res" and chip.learns_clip:
        return f"{path} counts the levels of a learned clip: it stays static"
    try:
        part, name = _part(weight.hardware, path)
    except LookupError as error:
        return str(error.args[0])
    return _refused_field(static(part), name)


def _measures_responses(chip: Hardware) -> bool:
    """Whether a drift compensation measures tiles through their periphery."""
    compensation = chip.drift_compensation
    return compensation is not None and compensation.readout == "periphery"


def _is_traced(hardware: Hardware, path: str) -> bool:
    part, name = _part(hardware, path)
    return bool(found_in(getattr(part, name)))


def _part(hardware: Hardware, path: str) -> tuple[Any, str]:
    """Returns the configuration that a field's path leads to, and the field's name.

    Raises:
      LookupError: saying what is not there.
    """
    part: Any = hardware
    *steps, name = path.split(".")
    for step in steps:
        if isinstance(part, tuple):
            part = part[_stage(part, step)]
        else:
            at, part = part, getattr(part, step, None)
        if part is None:
            raise LookupError(f"there is no {step} in this {type(at).__name__}")
    return part, name


def _stage(stages: tuple[Any, ...], step: str) -> int:
    """Returns the number of the stage of a name, or of a number."""
    named = [
        str(number) if step.isdecimal() else x.type for number, x in enumerate(stages)
    ]
    found = [number for number, name in enumerate(named) if name == step]
    if len(found) != 1:
        names = ", ".join(f"{n}: {stage.type}" for n, stage in enumerate(stages))
        many = f"{len(found)} stages are called" if found else "no stage is called"
        raise LookupError(f"{many} {step!r}; name one by its number ({names})")
    return found[0]


@functools.lru_cache(maxsize=1024)
def _refused_field(part: Any, name: str) -> str:
    """Returns why a field of a configuration cannot be traced, or nothing."""
    kind = type(part).__name__
    fields = [x.name for x in dataclasses.fields(part)] if part is not None else []
    if isinstance(part, tuple) or not fields:
        return f"{name!r} is no field of a part: write the whole path to a number"
    floats = [x for x in fields if _is_number(getattr(part, x))]
    if name not in fields:
        return f"{kind} has no field {name!r}; its numbers are {', '.join(floats)}"
    value = getattr(part, name)
    if name not in floats:
        return (
            f"{name} is {value!r}, no floating-point number: it decides which program "
            f"is compiled. The numbers of this {kind} are {', '.join(floats) or 'none'}"
        )
    if kind == "CustomPairConductanceConverter" and name in ("f_lst", "g_lst"):
        return f"{name} {_OF_CURVES}: it stays static"
    off = 1.0 if name == "out_scale" else 0.0
    if value == off and name not in _PLAIN:
        return (
            f"{name} is {off:g} in the configuration, which turns it off: write there "
            "what it is about, because that decides what is computed"
        )
    try:
        # Its own checks say of a number that does nothing beside the others that it
        # does nothing.
        dataclasses.replace(part, **{name: _near(value)})
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return ""


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, float)


def _near(value: Any) -> Any:
    return (
        tuple(map(_near, value)) if isinstance(value, tuple) else value * (1 - 2**-10)
    )


def _value(key: str, part: Any, name: str, value: ArrayLike, flat: str | None) -> Any:
    """Returns constants in the place of a number, or of a tuple of them."""
    number = static(getattr(part, name))
    shape = np.shape(number)
    if np.shape(value) != shape:
        raise ValueError(
            f"with_constants: {key!r} takes the shape {shape}, as its {number!r} has, "
            f"got {np.shape(value)}. To compute with several values, map over them "
            "with jax.vmap"
        )
    if not isinstance(value, Tracer):
        _check_value(key, part, name, value)
    array = jnp.asarray(value, jnp.float32)
    if flat is not None:
        array = _without_slope(array, key, flat)

    def constants(number: Any, array: Any) -> Any:
        if isinstance(number, tuple):
            return tuple(constants(x, array[n]) for n, x in enumerate(number))
        return Constant(key.rpartition(":")[2], number, value=array)

    return constants(number, array)


def _check_value(key: str, part: Any, name: str, value: ArrayLike) -> None:
    """Raises for a number that the field does not take."""
    given: Any = np.asarray(value, np.float64).tolist()
    try:
        _adapter(type(part), name).validate_python(given, strict=False)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"with_constants: {key!r}: {message}; got {value}") from error


@functools.cache
def _adapter(kind: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(kind, include_extras=True)[name])


def _without_slope(array: jax.Array, key: str, why: str) -> jax.Array:
    """Returns an array by which nothing can be differentiated."""

    @jax.custom_jvp
    def identity(x: jax.Array) -> jax.Array:
        return x

    @identity.defjvp
    def slope(primals: Any, tangents: Any) -> Any:
        raise ValueError(
            f"with_constants: there is no gradient to {key!r}: {why}. Give it as "
            "jax.lax.stop_gradient(value), or differentiate without it"
        )

    return identity(array)


def _check_conductances(weight: AnalogWeight, given: Mapping[str, Any]) -> None:
    """Raises where a converter and a noise model would have two ranges."""
    model = weight.hardware.noise_model
    for name in ("g_max", "g_min"):
        both = [f"{part}.{name}" for part in ("converter", "noise_model")]
        there = [path for path in both if path in given]
        if len(there) == 1 and model is not None and hasattr(model, name):
            (other,) = set(both) - set(there)
            raise ValueError(
                f"with_constants: {weight.path}: {there[0]} and {other} are one number: "
                "give both the same value"
            )


def _set(hardware: Hardware, given: Mapping[str, Any]) -> Hardware:
    """Returns hardware with constants in the place of numbers, unchecked."""
    for path, value in given.items():
        hardware = _replaced(hardware, path.split("."), value)
    return hardware


def _replaced(at: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(at, tuple):
        chosen = _stage(at, step)
        new = _replaced(at[chosen], rest, value)
        return (*at[:chosen], new, *at[chosen + 1 :])
    new = _replaced(getattr(at, step), rest, value)
    return replaced(at, **{step: new})
