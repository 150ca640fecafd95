"""Which numbers of hardware may be traced, where, and why the others may not."""

import dataclasses
import functools
from typing import Any

from hwtrain._errors import InputError
from hwtrain._parts.constant import static
from hwtrain._plan.hardware import Hardware

IN_A_CALL = ("modifier", "forward", "mapping", "noise_current")
"""The parts of hardware that a call of a model reads."""

OF_A_CHIP = (
    *("modifier", "forward", "mapping", "mismatch", "converter", "noise_model"),
    *("drift_compensation", "stuck"),
)
"""The parts that programming, mismatch and the reads of a chip use."""

_IN_AN_UPDATE = "is read by the optimiser, which is compiled with it"

_HOW_OFTEN = (
    "decides how often a tile is read again, which is compiled into the program"
)

_STATIC = {
    "clip": _IN_AN_UPDATE,
    "remap": _IN_AN_UPDATE,
    "drift": _IN_AN_UPDATE,
    "input_range": _IN_AN_UPDATE,
    "forward.nm_decay": _IN_AN_UPDATE,
    "forward.max_bm_factor": _HOW_OFTEN,
    "forward.max_bm_res": _HOW_OFTEN,
}
"""Numbers that stay static, by the beginning of their path, and why."""

_PLAIN = ("g_min", "g_low", "v_offset_w_min")
"""Numbers for which zero turns nothing off."""


def innermost(path: str) -> str:
    """Returns the path of a number as if no noise model stood around another.

    >>> innermost("noise_model.noise_model.t_0")
    'noise_model.t_0'
    """
    first, *steps = path.split(".")
    while first == "noise_model" and steps[:1] == [first]:
        steps = steps[1:]
    return ".".join([first, *steps])


def refusal(chip: Hardware, path: str, parts: tuple[str, ...]) -> str:
    """Returns why a number of hardware cannot be traced; empty if it can.

    Args:
      chip: the hardware.
      path: path of the number.
      parts: the fields of `Hardware` that the caller reads.
    """
    for known, why in _STATIC.items():
        if f"{innermost(path)}.".startswith(f"{known}."):
            return f"it {why}, and stays static"
    first = path.partition(".")[0]
    names = [field.name for field in dataclasses.fields(Hardware)]
    if first not in names:
        return f"hardware has no part {first!r}; it has {', '.join(names)}"
    if first not in parts:
        in_a_call = parts == IN_A_CALL
        taker = (
            "a plan (for apply_mismatch and program_chip)" if in_a_call else "a model"
        )
        return (
            f"{first} is not used here (only {', '.join(parts)} are); pass it to "
            f"{taker} instead"
        )
    elsewhere = (
        _of_a_call(chip, path) if parts == IN_A_CALL else _of_a_chip(chip, first)
    )
    elsewhere = elsewhere or _of_a_limit(chip, path) or _of_a_stage(chip, path)
    if elsewhere:
        return elsewhere
    try:
        part, name = part_of(chip, path)
    except LookupError as error:
        return str(error.args[0])
    return _of_a_field(static(part), name)


def _of_a_call(chip: Hardware, path: str) -> str:
    if path == "mapping.weight_scaling_omega" and chip.stores_scale:
        return "it was read when the mapping scale was stored beside the weights"
    if path == "modifier.res" and chip.learns_clip:
        return "it counts the levels of a learned clip, and stays static"
    return ""


def _of_a_limit(chip: Hardware, path: str) -> str:
    """Returns why a number that limits how often inputs are halved stays static."""
    io = chip.forward
    if io is None or path not in ("forward.inp_res", "forward.inp_bound"):
        return ""
    if io.bound_management not in ("iterative", "iterative_worst_case"):
        return ""
    if io.dac.converter.step is None:
        return ""
    return (
        f"it sets the step of the DAC, which with max_bm_res {_HOW_OFTEN} under "
        f"bound_management={io.bound_management!r}, and stays static"
    )


def _of_a_stage(chip: Hardware, path: str) -> str:
    """Returns why a number that a stage states too stays static."""
    for stage in () if chip.forward is None else chip.forward.stages:
        if path in stage.keeps_static:
            return f"the stage {stage.type!r} states it too, so it stays static"
    return ""


def _of_a_chip(chip: Hardware, first: str) -> str:
    rounds = chip.modifier is not None and chip.modifier.rounds_chips
    if first == "modifier" and not rounds:
        return (
            "a chip is not programmed through this modifier; pass it to a model instead"
        )
    if first == "modifier" and chip.learns_clip:
        return "it counts the levels of a learned clip, and stays static"
    compensation = chip.drift_compensation
    measured = compensation is not None and compensation.readout == "periphery"
    if first == "forward" and not measured:
        return (
            "programming reads the periphery only to compensate drift through it; pass "
            "it to a model instead"
        )
    return ""


def part_of(chip: Hardware, path: str) -> tuple[Any, str]:
    """Returns the configuration that holds a number, and the name of its field.

    Raises:
      LookupError: naming the missing step of the path.
    """
    part: Any = chip
    *steps, name = path.split(".")
    for step in steps:
        at = part
        stages = isinstance(at, tuple)
        part = at[number_of_stage(at, step)] if stages else getattr(at, step, None)
        if part is None:
            raise LookupError(f"this {type(at).__name__} has no {step}")
    return part, name


def number_of_stage(stages: tuple[Any, ...], step: str) -> int:
    """Returns the index of a stage, given its name or number.

    Raises:
      LookupError: unless exactly one stage matches.
    """
    places = [str(number) for number in range(len(stages))]
    named = places if step.isdecimal() else [stage.type for stage in stages]
    found = [number for number, name in enumerate(named) if name == step]
    if len(found) != 1:
        names = ", ".join(f"{n}: {stage.type}" for n, stage in enumerate(stages))
        many = f"{len(found)} stages are called" if found else "no stage is called"
        raise LookupError(f"{many} {step!r}; name one by its number ({names})")
    return found[0]


@functools.lru_cache(maxsize=1024)
def _of_a_field(part: Any, name: str) -> str:
    """Returns why a field of a static part cannot be traced; empty if it can."""
    kind = type(part).__name__
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return f"{name!r} is not a field of a part: write the whole path of a number"
    fields = [field.name for field in dataclasses.fields(part)]
    numbers = [field for field in fields if _is_number(getattr(part, field))]
    there = f"the numbers of this {kind} are {', '.join(numbers) or 'none'}"
    if name not in fields:
        return f"{kind} has no field {name!r}; {there}"
    value = getattr(part, name)
    if name not in numbers:
        return (
            f"{name} is {value!r}, which is not a floating-point number and decides "
            f"which program is compiled; {there}"
        )
    why = getattr(part, "stays_static", {}).get(name)
    if why is not None:
        return f"it {why}, and stays static"
    off = 1.0 if name == "out_scale" else 0.0
    if value == off and name not in _PLAIN:
        return (
            f"it is {off:g} in the configuration, which turns the effect off, so it is "
            "not compiled; set it near the values you will pass"
        )
    try:
        # The part's own checks reject a number without effect beside the others.
        dataclasses.replace(part, **{name: _near(value)})
    except InputError as error:
        return str(error)
    return ""


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, float)


def _near(value: Any) -> Any:
    """Returns a slightly different number, to test whether the field accepts others."""
    if isinstance(value, tuple):
        return tuple(map(_near, value))
    return value * (1 - 2**-10)
