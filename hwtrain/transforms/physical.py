"""Bits and microsiemens: what a chip's normalised numbers mean to an engineer."""

import math

import numpy as np

from hwtrain.hardware import (
    Hardware,
    IOParameters,
    MismatchParameter,
    WeightModifierParameter,
)


def bits(chip: Hardware) -> str:
    """Returns the bits of the converters, of levels that are given in any way.

    >>> chip = IOParameters(inp_bits=8, out_res=1 / 510, out_bound=10.0)
    >>> bits(Hardware(forward=chip))
    'DAC 8, ADC 9'
    """
    io, found = chip.forward or IOParameters(), []
    for name, stage in (("DAC", io.dac), ("ADC", io.adc)):
        converter = stage.converter
        if converter.step is not None and converter.res is not None:
            found.append(f"{name} {math.log2(1 / converter.res + 2):.3g}")
    return ", ".join(found) or "none"


def conductance_noise(chip: Hardware) -> str:
    r"""Returns standard deviations in µS, of a device at the largest conductance.

    A weight noise or mismatch of :math:`\sigma`, relative to the largest weight, is
    :math:`\sigma (g_\text{max} - g_\text{min})` there.

    >>> from hwtrain.hardware import presets
    >>> conductance_noise(presets.pcm())
    'programming 1.06 µS'
    """
    converter = chip.converter
    if converter is None:
        return "none"
    span, found = converter.g_max - converter.g_min, []
    modifier = chip.modifier
    normal = ("add_normal", "mult_normal")
    if isinstance(modifier, WeightModifierParameter) and modifier.type in normal:
        if modifier.acts and (
            modifier.rel_to_actual_wmax or modifier.type == "mult_normal"
        ):
            found.append(f"weights {modifier.std_dev * span:.3g} µS")
    mismatch = chip.mismatch
    if isinstance(mismatch, MismatchParameter) and mismatch.rel_to_actual_wmax:
        if mismatch.draws:
            found.append(f"mismatch {mismatch.std_dev * span:.3g} µS")
    if chip.noise_model is not None:
        sigma = float(np.asarray(chip.noise_model.programming_sigma(converter.g_max)))
        found.append(f"programming {sigma:.3g} µS")
    return ", ".join(found) or "none"
