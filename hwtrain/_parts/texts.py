"""Table cells that several kinds of parts share."""

import math
from typing import Any

NOISE = "noise at g_max"
"""Column of standard deviations in µS of the largest weight, whose devices are at the
largest conductance; with several pairs, of the sum that the weight is."""


def in_microsiemens(name: str, share: float, ctx: Any) -> dict[str, str]:
    r"""Returns the cell for a deviation relative to the largest weight.

    A :math:`\sigma` of weights is :math:`\sigma (g_\text{max} - g_\text{min})` there;
    with several pairs, that times the sum of their factors.

    Args:
      name: label of the deviation.
      share: the deviation, relative to the largest weight.
      ctx: as in `describe_in`.
    """
    converter = ctx.weight.hardware.converter
    if converter is None:
        return {}
    return {NOISE: f"{name} {of_full_scale(share * converter.full_scale, converter)}"}


def of_full_scale(deviation: float, converter: Any) -> str:
    """Returns a deviation in µS, with the full scale if it is not that of a device."""
    full = converter.full_scale
    said = f"{deviation:.3g} µS"
    if math.isclose(full, converter.g_max - converter.g_min, rel_tol=1e-6):
        return said
    return f"{said} of {full:.4g} µS"


def span(low: float, high: float) -> str:
    """Returns the range of numbers in three digits; one number if both ends are equal.

    >>> span(0.25, 4.0), span(4.4001, 4.4002)
    ('0.25 to 4', '4.4')
    """
    ends = dict.fromkeys(f"{end:.3g}" for end in (low, high))
    return " to ".join(ends)
