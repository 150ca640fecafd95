"""Checks that a stage with the thresholds of an ADC belongs to the ADC around it."""

import math
from typing import Any

from hwtrain._errors import InputError
from hwtrain._parts.constant import static
from hwtrain.periphery.adc import Adc


def check_adc(
    stage: Any, hardware: Any, bound: float, count: int, *, required: bool
) -> None:
    """Raises unless the ADC of a hardware has as many thresholds, up to the same bound.

    Args:
      stage: the stage.
      hardware: its hardware.
      bound: the full scale of the stage's thresholds.
      count: their number.
      required: whether there must be an ADC with levels that rounds to the nearest;
        otherwise, one without levels, or none, is right too.

    Raises:
      InputError: for another ADC.
    """
    found = [other for other in hardware.stages if isinstance(other, Adc)]
    adc = static(found[0]) if found else Adc()
    fits = f"out_bound={bound:g} and out_res={count}"
    if adc.bound is None or adc.res is None:
        if required:
            raise InputError(
                f"the stage {stage.type!r} has the thresholds of an ADC, and the "
                f"hardware has no ADC with levels: write {fits} in IOParameters, or "
                "leave the stage out"
            )
        return
    steps = 1 / adc.res
    if not math.isclose(adc.bound, bound, rel_tol=1e-6):
        raise InputError(
            f"the stage {stage.type!r} has thresholds up to bound={bound:g}, and the "
            f"ADC of its hardware has out_bound={adc.bound:g}: write the same in both"
        )
    if not math.isclose(steps, count, rel_tol=1e-6):
        raise InputError(
            f"the stage {stage.type!r} has {count} thresholds, and the ADC of its "
            f"hardware has {steps:g} steps: write out_res={count} in IOParameters, or "
            f"{steps:g} thresholds in the stage (an ADC of b bits has 2^b - 2)"
        )
    if required and adc.stochastic:
        raise InputError(
            f"the stage {stage.type!r} converts outputs, and out_sto_round=True would "
            "round them again, at random: leave out_sto_round out"
        )
