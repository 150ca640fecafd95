"""What parts of several rooms say of themselves."""

from typing import Any

NOISE = "noise at g_max"
"""The column of standard deviations in µS, of a device at the largest conductance."""


def in_microsiemens(name: str, share: float, ctx: Any) -> dict[str, str]:
    r"""Returns the cell of a deviation that is relative to the largest weight.

    A :math:`\sigma` of weights is :math:`\sigma (g_\text{max} - g_\text{min})` there.

    Args:
      name: what deviates.
      share: the deviation, relative to the largest weight.
      ctx: as for `describe_in`.
    """
    converter = ctx.weight.hardware.converter
    if converter is None:
        return {}
    return {NOISE: f"{name} {share * (converter.g_max - converter.g_min):.3g} µS"}
