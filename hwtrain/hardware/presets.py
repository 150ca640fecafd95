"""Chips from the literature, one source each.

A preset says how weights become conductances on a chip; the chip's noise is the noise
model that its docstring names. What it leaves at `None` is ideal: add it with
`dataclasses.replace`.
"""

from typing import Literal

from hwtrain.hardware.chip import Hardware
from hwtrain.hardware.converters import (
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.hardware.hermes import HermesNoiseModel


def ideal() -> Hardware:
    """Returns a chip without any imperfection: a baseline for all others.

    >>> ideal() == Hardware()
    True
    """
    return Hardware()


def pcm() -> Hardware:
    """Returns a phase-change chip: pairs of devices of 0 to 25 µS.

    Its noise is `PCMLikeNoiseModel()`.

    >>> pcm().converter.g_max
    25.0

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    return Hardware(converter=SinglePairConductanceConverter(g_max=25.0))


def hermes(*, num_devices: Literal[1, 2] = 2) -> Hardware:
    """Returns the Hermes chip: pairs of 0 to 20.7 µS, or 10.35 µS with one device.

    Its noise is `HermesNoiseModel(num_devices=num_devices)`.

    >>> hermes().converter.g_max, hermes(num_devices=1).converter.g_max
    (20.7, 10.35)

    Args:
      num_devices: devices that hold a conductance together, 1 or 2.

    Raises:
      ValueError: for another number of devices.

    References:
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023.
    """
    if num_devices not in (1, 2):
        raise ValueError(
            f"Hermes holds a conductance in 1 or 2 devices, got {num_devices}"
        )
    g_max = HermesNoiseModel(num_devices=num_devices).g_max
    return Hardware(converter=SinglePairConductanceConverter(g_max=g_max))


def reram_wan2022() -> Hardware:
    """Returns the NeuRRAM chip: pairs of ReRAM devices of 0 to 40 µS.

    Its noise is `ReRamWan2022NoiseModel()`.

    >>> reram_wan2022().converter.g_max
    40.0

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022.
    """
    return Hardware(converter=SinglePairConductanceConverter(g_max=40.0))


def reram_cmo() -> Hardware:
    """Returns a CMO/HfOx ReRAM chip: single devices of 9 to 88.2 µS.

    Its noise is `ReRamCMONoiseModel()`.

    >>> reram_cmo().converter.g_min
    9.0

    References:
      Falcone et al., All-in-one analog AI accelerator: on-chip training and inference
      with conductive-metal-oxide/HfOx ReRAM devices, 2025.
    """
    return Hardware(converter=SingleDeviceConductanceConverter())
