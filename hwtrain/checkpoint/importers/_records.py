"""Records of configurations, part by part, as plain data that hwtrain takes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from hwtrain._errors import InputError
from hwtrain._parts.calls import fault
from hwtrain._parts.fields import from_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.checkpoint.importers._torch_file import Record

Data = dict[str, Any]
"""Plain data, as TOML holds it."""
_IDLE = ("does nothing", "no effect")
"""What errors say about an option that is left out without a loss."""

_WORDS = {
    "AbsMaxNPSum": "abs_max_np_sum",
    "DoReFa": "dorefa",
    "PCMNoise": "pcm_noise",
    "PCMRead": "pcm_read",
}
"""Values of enumerations whose words are not separated by capital letters."""
RANGE_FIELDS = (
    "learn_input_range init_value init_from_data init_std_alpha fast_mode "
    "act_range_momentum decay input_min_percentage manage_output_clipping "
    "output_min_percentage gradient_scale gradient_relative"
).split()


def shortened(found: Data) -> Data:
    """Returns hardware without the fields that have their default.

    >>> shortened({"modifier": {"type": "add_normal", "std_dev": 0.1, "res": 0.0}})
    {'modifier': {'type': 'add_normal', 'std_dev': 0.1}}
    """
    whole, kept = hardware_of(found), {n: dict(x) for n, x in found.items()}
    for part, fields in found.items():
        for name in fields:
            left = {n: x for n, x in kept[part].items() if n != name}
            try:
                same = from_dict(Hardware, {**kept, part: left}) == whole
            except ValueError:
                same = False
            if same and name != "type":
                kept[part] = left
    return kept


def together(lost: Sequence[str]) -> tuple[str, ...]:
    """Returns what is lost once for all modules that lose it.

    >>> together(["0: its clip", "1: its noise", "2: its clip"])
    ('0, 2: its clip', '1: its noise')
    """
    names: dict[str, dict[str, None]] = {}
    for text in lost:
        name, _, what = text.partition(": ")
        names.setdefault(what, {})[name] = None
    return tuple(f"{', '.join(of)}: {what}" for what, of in names.items())


def part_of(config: Record, name: str) -> Record:
    """Returns a part of a configuration; an empty one if it has none.

    Tensors without an axis become the numbers that they are.

    Raises:
      ValueError: for a tensor of several numbers.
    """
    found, made = config.get(name), Record()
    if isinstance(found, Record):
        made.fields = {x: _number(f"{name}.{x}", v) for x, v in found.fields.items()}
    return made


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim:
        raise InputError(
            f"{name}: expected a number, got a tensor of the shape {value.shape}; "
            "write a number into the rpu_config, and save again"
        )
    return value.item()


def word(value: Any) -> str:
    """Returns a member of an enumeration as hwtrain writes it.

    >>> word(Record("LayerGaussianPerChannel")), word(Record("ABS_MAX"))
    ('layer_gaussian_per_channel', 'abs_max')
    """
    if not isinstance(value, Record):
        return "none"
    text = str(value.args[0]) if value.args else "None"
    if text.isupper():
        return text.lower()
    return _WORDS.get(text, re.sub(r"(?<!^)(?=[A-Z])", "_", text).lower())


def is_positive(value: Any) -> bool:
    """Whether a value is a number above 0; others turn bounds and steps off."""
    return isinstance(value, int | float) and value > 0


def hardware_of(found: Data, where: str = "") -> Hardware:
    """Returns hardware from plain data.

    Args:
      found: the hardware.
      where: what an error starts with.

    Raises:
      ValueError: naming the field, if hwtrain does not take it.
    """
    try:
        return from_dict(Hardware, found)
    except ValueError as error:
        raise InputError(f"{where}{_place(error)}{_reason(error)}") from error


def require(found: Data, part: str, lost: list[str]) -> None:
    """Raises if a part is not there, without which results would differ.

    Args:
      found: the hardware.
      part: the part.
      lost: the list that says why, last.
    """
    if part not in found:
        raise InputError(lost[-1])


def add_part(
    found: Data,
    part: str,
    base: Data,
    given: Mapping[str, Any],
    names: Iterable[str],
    lost: list[str],
    *,
    at_once: bool = False,
) -> None:
    """Adds a part with those of the given fields that hwtrain takes.

    A field that does nothing beside the others is refused by hwtrain, and left out.

    Args:
      found: the hardware so far, to which the part is added.
      part: its name.
      base: fields that it must have.
      given: the fields of the reference.
      names: those that may be taken.
      lost: where fields are listed that hwtrain does not take.
      at_once: try all fields together first, because they need each other.
    """
    fields = {n: as_data(given[n]) for n in names if n in given}
    fields = {n: x for n, x in fields.items() if x is not None}

    def refusal(data: Data, *, placed: bool = False) -> str:
        try:
            from_dict(Hardware, {**found, part: data})
        except ValueError as error:
            place = (_place(error) or f"{part}: ") if placed else ""
            return place + _reason(error)
        return ""

    if (at_once or refusal(base)) and not refusal({**base, **fields}):
        found[part] = {**base, **fields}
        return
    kept = _accepted(base, fields, refusal)
    why = refusal(kept, placed=True)
    if why:
        lost.append(why)
        return
    found[part] = kept
    for name in [name for name in fields if name not in kept]:
        why = refusal({**kept, name: fields[name]})
        if not any(words in why for words in _IDLE):
            lost.append(f"{part}.{name}={fields[name]}: {why}")


def _accepted(base: Data, fields: Data, refusal: Callable[[Data], str]) -> Data:
    kept = dict(base)
    left = dict(fields)
    # Again, because a field may be taken only beside another one.
    for _ in range(3):
        for name in list(left):
            if not refusal({**kept, name: left[name]}):
                kept[name] = left.pop(name)
    return kept


def as_data(value: Any) -> Any:
    """Returns a value as TOML holds it; `None` for parts of a configuration."""
    if isinstance(value, Record):
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [as_data(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str) else None


def _reason(error: ValueError) -> str:
    return fault(error) if isinstance(error, ValidationError) else str(error)


def _place(error: ValueError) -> str:
    """Returns the field that an error is about, if it tells one: `clip.sigma: `."""
    if not isinstance(error, ValidationError):
        return ""
    keys = [x for x in error.errors(include_url=False)[0]["loc"] if isinstance(x, str)]
    # Between the first and the last is the type of the part, if it has one.
    return ".".join(dict.fromkeys([*keys[:1], *keys[-1:]])) + ": " if keys else ""
