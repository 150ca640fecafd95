"""What the converter of a hardware writes for the largest weight of a crossbar."""

import math
from typing import Any

from hwtrain._errors import InputError


def check_devices(stage: Any, hardware: Any) -> None:
    """Raises unless a converter writes the conductances that a stage of wires has.

    Without a converter, any are right.

    Args:
      stage: a stage with `g_max_us`, of a weight of 1, and `g_min_us`, of 0.
      hardware: its hardware.

    Raises:
      InputError: for other devices than one pair for each weight, or another range.
    """
    converter = hardware.converter
    if converter is None:
        return
    if not converter.linear_pair:
        raise InputError(
            f"the stage {stage.type!r} has wires of one pair of devices for each "
            f"weight, and the converter {converter.type!r} writes other devices: write "
            "converter=SinglePairConductanceConverter(...), or leave the stage out"
        )
    omega = largest_weight(stage, hardware)
    low, said = converter.g_min, ""
    high = low + (converter.g_max - low) / omega
    if omega != 1:
        said = f", which hold a weight of weight_scaling_omega={omega:g}"
    for name, here, there in (
        ("g_max", stage.g_max_us, high),
        ("g_min", stage.g_min_us, low),
    ):
        if not math.isclose(here, there, rel_tol=1e-6):
            raise InputError(
                f"the stage {stage.type!r} has {name}_us={here:g}, and the "
                f"converter {converter.type!r} has devices of "
                f"{converter.g_min:g} to {converter.g_max:g} µS{said}: write "
                f"{name}_us={there:g} in the stage, or change the {name} of the "
                "converter and of its noise model"
            )


def largest_weight(stage: Any, hardware: Any) -> float:
    """Returns the crossbar weight for which a converter writes its largest conductance.

    A converter takes its scale from the largest weight of each tile or column. Only if
    the mapping makes this one the same everywhere, and training keeps it, does a weight
    have one conductance.

    Args:
      stage: the stage that asks, for the message.
      hardware: a hardware with a converter.

    Raises:
      InputError: unless the largest weight is `weight_scaling_omega`, always.
    """
    mapping, converter, remap = hardware.mapping, hardware.converter, hardware.remap
    omega = 0.0 if mapping is None else mapping.weight_scaling_omega
    columnwise = mapping is not None and mapping.weight_scaling_columnwise
    per_column = getattr(converter, "per_column", False)
    each = "column" if per_column else "tile"
    if omega == 0:
        why = "nothing fixes without weight_scaling_omega"
        way = "write mapping=MappingParameter(weight_scaling_omega=1.0)"
    elif per_column and not columnwise:
        why = "nothing fixes without weight_scaling_columnwise"
        way = "write weight_scaling_columnwise=True in the mapping"
    elif hardware.remaps and (remap.remapped_wmax != omega or remap.max_scale_range):
        why = f"remap moves from weight_scaling_omega={omega:g}"
        way = f"write remapped_wmax={omega:g} without max_scale_range in the remap"
    elif hardware.remaps and per_column and not remap.per_column:
        why = f"remap of type={remap.type!r} lets change"
        way = 'write type="channelwise_symmetric" in the remap'
    elif hardware.learns_clip or (hardware.stores_scale and not hardware.remaps):
        why = f"clip={hardware.clip.type!r} lets change in training"
        way = f"leave the clip out, or clip by another type than {hardware.clip.type!r}"
    else:
        return omega
    raise InputError(
        f"the stage {stage.type!r} needs to know the largest weight of each {each} on "
        f"its crossbar, from which the converter {converter.type!r} takes its scale, "
        f"and which {why}: {way}, or leave the converter out"
    )
