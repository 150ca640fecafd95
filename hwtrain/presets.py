"""Chips from the literature, one source each.

`pcm`, `hermes`, `reram_wan2022` and `reram_cmo` define how weights become conductances
and the noise of these; `standard_hwa_training` and `aihwkit_default` define the
periphery of the tiles too, and `sram_c3` the periphery of bits in place of
conductances. A field that a preset leaves at `None` is ideal: set it with
`dataclasses.replace`.
"""

import dataclasses
from typing import Literal

from hwtrain._errors import InputError
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import (
    GlobalDriftCompensation,
    HermesNoiseModel,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamMiloNoiseModel,
    ReRamWan2022NoiseModel,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
    SonosNoiseModel,
)
from hwtrain.periphery import ComparatorOffsets, InputRangeParameter, IOParameters
from hwtrain.weights import (
    BinaryWeights,
    MappingParameter,
    WeightClipParameter,
    WeightRemapParameter,
)


def ideal() -> Hardware:
    """Returns a chip without any imperfection, as a baseline.

    >>> ideal() == Hardware()
    True
    """
    return Hardware()


def pcm() -> Hardware:
    """Returns a phase-change memory chip: device pairs of 0 to 25 µS.

    >>> pcm().converter.g_max, pcm().noise_model.type
    (25.0, 'pcm_like')

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019, doi:10.1109/ICECS46596.2019.8964852.
    """
    return Hardware(
        converter=SinglePairConductanceConverter(g_max=25.0),
        noise_model=PCMLikeNoiseModel(),
    )


def hermes(*, num_devices: Literal[1, 2] = 2) -> Hardware:
    """Returns the Hermes chip: device pairs of 0 to 20.7 µS (one device: 10.35 µS).

    >>> hermes().converter.g_max, hermes(num_devices=1).converter.g_max
    (20.7, 10.35)

    Args:
      num_devices: number of devices that share a conductance, 1 or 2.

    Raises:
      ValueError: for another number of devices.

    References:
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023,
      doi:10.1038/s41928-023-01010-1.
    """
    if num_devices not in (1, 2):
        raise InputError(
            f"Hermes holds a conductance in 1 or 2 devices, got {num_devices}"
        )
    noise = HermesNoiseModel(num_devices=num_devices)
    return Hardware(
        converter=SinglePairConductanceConverter(g_max=noise.g_max), noise_model=noise
    )


def reram_wan2022() -> Hardware:
    """Returns the NeuRRAM chip: pairs of ReRAM devices of 0 to 40 µS.

    >>> reram_wan2022().converter.g_max
    40.0

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022, doi:10.1038/s41586-022-04992-8.
    """
    return Hardware(
        converter=SinglePairConductanceConverter(g_max=40.0),
        noise_model=ReRamWan2022NoiseModel(),
    )


def reram_milo() -> Hardware:
    """Returns a multilevel HfO2 ReRAM chip: pairs of devices of 50 to 225 µS.

    >>> reram_milo().converter.g_min
    50.0

    References:
      Milo et al., Optimized programming algorithms for multilevel RRAM in hardware
      neural networks, IRPS 2021, doi:10.1109/IRPS46558.2021.9405119.
    """
    return Hardware(
        converter=SinglePairConductanceConverter(g_max=225.0, g_min=50.0),
        noise_model=ReRamMiloNoiseModel(),
    )


def sonos() -> Hardware:
    """Returns a 40 nm SONOS flash chip: pairs of devices of 0 to 16 µS.

    >>> sonos().converter.g_max
    16.0

    References:
      Agrawal et al., Subthreshold operation of SONOS analog memory to enable accurate
      low-power neural network inference, IEDM 2022,
      doi:10.1109/IEDM45625.2022.10019564.
    """
    return Hardware(
        converter=SinglePairConductanceConverter(g_max=16.0),
        noise_model=SonosNoiseModel(),
    )


def reram_cmo() -> Hardware:
    """Returns a CMO/HfOx ReRAM chip: single devices of 9 to 88.2 µS.

    >>> reram_cmo().converter.g_min
    9.0

    References:
      Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
      conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524, 2025.
    """
    return Hardware(
        converter=SingleDeviceConductanceConverter(), noise_model=ReRamCMONoiseModel()
    )


def sram_c3() -> Hardware:
    """Returns the C3SRAM macro: cells of one bit, whose charges a flash ADC converts.

    Tiles of 256 rows and 64 columns hold signs of weights; a layer's size of weights is
    the digital scale of its tiles. Sums of products of 1 have noise with a deviation of
    0.97 at each conversion, and 11 levels from -65 to 65; the thresholds of every
    column have offsets of their own, with a deviation of 0.89. These are the numbers of
    the authors' Monte Carlo model. Its inputs are -1 and 1 (or bits); here they have
    the levels -1, 0 and 1 of a learned range, in one pass. The range starts where three
    levels have the least error for normal inputs, at 1.224 standard deviations. More
    bits take several passes, with `inp_bits=4, mv_type="bit_wise"` in `forward`, and a
    wider range.

    A sum leaves the level of zero beyond 6.5. With inputs and weights of random signs,
    its deviation is the root of the number of inputs that are not zero: layers of much
    fewer than 256 rows say little, and are better left digital.

    Nothing is programmed and nothing drifts, so there is no converter and no noise
    model. Noise, offsets and signs also act in training.

    >>> chip = sram_c3()
    >>> chip.modifier.type, chip.forward.out_noise, chip.mapping.max_input_size
    ('binary', 0.97, 256)

    References:
      Jiang et al., C3SRAM: an in-memory-computing SRAM macro based on robust capacitive
      coupling computing mechanism, IEEE Journal of Solid-State Circuits 2020,
      doi:10.1109/JSSC.2020.2992886; numbers of the simulation at
      github.com/ShihuiYin/BinaryNet_with_quantized_partial_sum.

      Max, Quantizing for minimum distortion, IRE Transactions on Information Theory
      1960, for the range.
    """
    return Hardware(
        modifier=BinaryWeights(),
        input_range=InputRangeParameter(init_value=1.224, init_std_alpha=1.224),
        forward=IOParameters(
            inp_bits=2,
            out_res=10.0,
            out_bound=65.0,
            out_noise=0.97,
            stages=(ComparatorOffsets(bound=65.0, steps=10, offset_std=0.89),),
        ),
        mapping=MappingParameter(
            max_input_size=256, max_output_size=64, weight_scaling_omega=1.0
        ),
    )


def standard_hwa_training() -> Hardware:
    """Returns the standard model of hardware-aware training, on phase-change memory.

    Tiles of 512 inputs, converters of 254 steps (8 bits), read and output noise, IR
    drop, learned input ranges, weights clipped to 1 and remapped per column, and
    learned output scales. There is no weight modifier: the noise comes from the reads.
    On a chip, weights are programmed and drift as in `pcm`.

    >>> chip = standard_hwa_training()
    >>> chip.forward.w_noise, chip.forward.out_noise, chip.mapping.max_input_size
    (0.0175, 0.04, 512)

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023, doi:10.1038/s41467-023-40770-4.
    """
    return dataclasses.replace(
        pcm(),
        forward=IOParameters(
            inp_res=254.0,
            out_res=254.0,
            out_bound=10.0,
            out_noise=0.04,
            w_noise=0.0175,
            w_noise_type="pcm_read",
            ir_drop=1.0,
        ),
        input_range=InputRangeParameter(),
        mapping=MappingParameter(
            max_input_size=512,
            max_output_size=None,
            weight_scaling_omega=1.0,
            weight_scaling_columnwise=True,
            learn_out_scaling=True,
            out_scaling_columnwise=True,
        ),
        clip=WeightClipParameter(type="fixed_value", fixed_value=1.0),
        remap=WeightRemapParameter(type="channelwise_symmetric"),
        drift_compensation=GlobalDriftCompensation(),
    )


def aihwkit_default() -> Hardware:
    """Returns the hardware of a default `InferenceRPUConfig()` in aihwkit 1.2.0.

    Tiles of 512 x 512 without weight scaling, a DAC of 126 and an ADC of 510 steps, and
    output noise. Each input vector is scaled by its largest value, and the product is
    repeated until no output is clipped. Phase-change memory with global drift
    compensation.

    >>> chip = aihwkit_default()
    >>> chip.forward.out_noise, chip.forward.bound_management
    (0.06, 'iterative')

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021,
      doi:10.1109/AICAS51828.2021.9458494.
    """
    return dataclasses.replace(
        pcm(),
        forward=IOParameters(
            inp_bound=1.0,
            inp_res=1 / 126,
            out_bound=12.0,
            out_res=1 / 510,
            out_noise=0.06,
            noise_management="abs_max",
            bound_management="iterative",
        ),
        mapping=MappingParameter(),
        drift_compensation=GlobalDriftCompensation(),
    )
