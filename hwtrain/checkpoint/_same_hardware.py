"""Checks that a checkpoint's chips are used with the hardware of their export."""

import dataclasses

from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.periphery import InputRangeParameter


def check_hardware(exported: Plan, model: Plan, instead: str) -> None:
    """Raises unless a model has the hardware of its checkpoint's chips.

    Parts that act only in training may differ.

    Args:
      exported: the plan of the checkpoint.
      model: the plan of the model.
      instead: what to write if other hardware is intended.

    Raises:
      HardwareCheckpointError: naming the first difference.
    """
    _check_outputs(exported, model)
    plans = (exported.effective, model.effective)
    for path in sorted(plans[0].keys() | plans[1].keys()):
        if any(path not in plan for plan in plans):
            found = ["analog" if path in plan else "digital" for plan in plans]
            difference = f"{path} is {found[0]} in the checkpoint, {found[1]}"
        else:
            chips = [_on_chip(plan[path].hardware) for plan in plans]
            if chips[0] == chips[1]:
                continue
            name, *values = _difference(*chips)
            difference = (
                f"the hardware of {path} has in the checkpoint {name}={values[0]!r}, "
                f"{name}={values[1]!r}"
            )
        raise HardwareCheckpointError(
            f"{difference} in the model. A chip belongs to the hardware that it was "
            "exported with: analogize the model with checkpoint.plan[path].hardware of "
            f"each weight. For chips of the model's own hardware, {instead}"
        )


def _check_outputs(exported: Plan, model: Plan) -> None:
    """Raises unless digital units store the results of the same modules alike."""
    found = [{x.path: x.format for x in plan.outputs} for plan in (exported, model)]
    for path in sorted(found[0].keys() | found[1].keys()):
        there, here = (formats.get(path) for formats in found)
        if there != here:
            said = [x.describe() if x else "as they are" for x in (there, here)]
            raise HardwareCheckpointError(
                f"the results of {path or 'the model'} are stored {said[0]} in the "
                f"checkpoint, {said[1]} in the model. Analogize the model with the "
                "rules of checkpoint.plan.outputs"
            )


def _on_chip(hardware: Hardware) -> Hardware:
    """Returns hardware without the parts that act only in training."""
    modifier, clip, ranges = hardware.modifier, hardware.clip, hardware.input_range
    return dataclasses.replace(
        hardware,
        modifier=modifier if modifier and modifier.enable_during_test else None,
        clip=clip if hardware.learns_clip else None,
        remap=None,
        drift=None,
        input_range=ranges and InputRangeParameter(dynamic=ranges.dynamic),
    )


def _difference(one: Hardware, other: Hardware) -> tuple[str, object, object]:
    """Returns the first field, or field of a part, that differs, and both values."""
    for field in dataclasses.fields(one):
        values = getattr(one, field.name), getattr(other, field.name)
        if values[0] == values[1]:
            continue
        if type(values[0]) is not type(values[1]):
            kinds = [None if v is None else type(v).__name__ for v in values]
            return field.name, kinds[0], kinds[1]
        for inner in dataclasses.fields(values[0]):
            parts = [getattr(value, inner.name) for value in values]
            if parts[0] != parts[1]:
                return f"{field.name}.{inner.name}", parts[0], parts[1]
    raise AssertionError("equal hardware has no difference")
