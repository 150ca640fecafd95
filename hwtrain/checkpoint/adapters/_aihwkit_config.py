"""Hardware as the Python code of an `InferenceRPUConfig`, and what is lost in it.

Field names are those of aihwkit (1.2.0), and mostly of hwtrain too.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hwtrain._parts.fields import changed
from hwtrain._parts.slot import is_own
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import NPairConductanceConverter

_FORWARD = (
    "inp_sto_round inp_noise inp_asymmetry out_sto_round out_noise out_noise_std "
    "out_asymmetry out_scale noise_management nm_thres bound_management max_bm_factor "
    "max_bm_res w_noise w_noise_type ir_drop ir_drop_g_ratio out_nonlinearity "
    "out_nonlinearity_std slope_calibration r_series v_offset_std v_offset_w_min "
    "mv_type w_read_asymmetry_dtod"
).split()
_MODIFIER = (
    "type std_dev rel_to_actual_wmax assumed_wmax res sto_round dorefa_clip pdrop "
    "coeffs g_max pcm_zero_thres pcm_t_inference pcm_t0 pcm_prob_at_reset "
    "pcm_prob_at_gmax pcm_prob_at_random enable_during_test per_batch_sample "
    "copy_last_column"
).split()
_INPUT_RANGE = (
    "enable learn_input_range init_value init_from_data init_std_alpha decay "
    "input_min_percentage manage_output_clipping output_min_percentage gradient_scale "
    "gradient_relative"
).split()
_MAPPING = (
    "max_input_size max_output_size weight_scaling_omega weight_scaling_columnwise "
    "learn_out_scaling out_scaling_columnwise"
).split()
_CLIP = "type sigma fixed_value".split()
_REMAP = "type remapped_wmax max_scale_range max_scale_ref".split()

_ENUMS = {
    "forward.noise_management": "NoiseManagementType",
    "forward.bound_management": "BoundManagementType",
    "forward.w_noise_type": "WeightNoiseType",
    "forward.mv_type": "AnalogMVType",
    "modifier.type": "WeightModifierType",
    "clip.type": "WeightClipType",
    "remap.type": "WeightRemapType",
}
_OFF = {
    "mapping.max_input_size": 0,
    "mapping.max_output_size": 0,
    "clip.fixed_value": -1.0,
}
"""Values in aihwkit for hwtrain's `None`."""

_WHOLE = {"forward.max_bm_factor"}
"""Fields that aihwkit's C++ takes as integers."""

_CONVERTERS = ("g_max", "g_min", "f_lst", "g_lst")
_NOISE: Mapping[str, tuple[str, ...]] = {
    "pcm_like": ("prog_coeff", "prog_coeff_g_max_reference"),
    "custom_drift_pcm_like": ("prog_coeff", "prog_coeff_g_max_reference"),
    "hermes": ("num_devices", "prog_coeff", "prog_coeff_g_max_reference"),
    "state_independent": ("prog_coeff", "drift_nu_mean", "drift_nu_std"),
    "reram_wan2022": ("noise_scale",),
    "reram_cmo": ("g_max", "g_min", "acceptance_range"),
}
"""The fields of each noise model in aihwkit, in addition to those common to all."""

_MV_TYPES = ("one_pass", "pos_neg_separate", "pos_neg_separate_digital_sum")
"""Kinds of passes of aihwkit's C++ tile; its torch tile for IR drop has the others."""

_EVERY = ("prog_noise_scale", "read_noise_scale", "drift_scale", "t_0", "t_read")


def rpu_config(
    hardwares: Mapping[str, Hardware], digital: Mapping[str, Sequence[str]] = {}
) -> tuple[str, dict[str, list[str]]]:
    """Returns a Python file, and for each layer the properties that it cannot express.

    Args:
      hardwares: the hardware of each layer, by the layer's name.
      digital: what else is lost, by the name of a module; for the file.
    """
    kinds = list(dict.fromkeys(hardwares.values()))
    names = {hardware: f"chip_type_{n}" for n, hardware in enumerate(kinds)}
    text = [_HEAD]
    lost = {}
    for hardware, name in names.items():
        lines, lost[hardware] = list(_assignments(hardware)), list(_lost(hardware))
        text.append(f"\n\ndef {name}():\n    config = InferenceRPUConfig()\n")
        text += [f"    {line}\n" for line in lines]
        text.append("    return config\n")
    text.append("\n\nRPU_CONFIGS = {\n")
    text += [f"    {layer!r}: {names[chip]},\n" for layer, chip in hardwares.items()]
    text.append('}\n"""Makes the configuration of a layer, by its name."""\n')
    text.append("\nLOST = {\n")
    by_layer = {layer: lost[chip] for layer, chip in hardwares.items()}
    for name in dict.fromkeys((*by_layer, *digital)):
        text.append(f"    {name!r}: [\n")
        lines = (*by_layer.get(name, ()), *digital.get(name, ()))
        text += [f"        {line!r},\n" for line in lines]
        text.append("    ],\n")
    text.append('}\n"""What aihwkit cannot say, and what these files leave out."""\n')
    return "".join(text), by_layer


_HEAD = '''"""The chip types of a checkpoint, as configurations of aihwkit.

    from rpu_config import RPU_CONFIGS
    layer = AnalogLinear(64, 128, rpu_config=RPU_CONFIGS["hidden"]())
"""

from aihwkit.inference import *
from aihwkit.inference.compensation.drift import *
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import *
'''


def _assignments(hardware: Hardware) -> Iterator[str]:
    io = hardware.forward
    if io is None:
        yield "config.forward.is_perfect = True"
    else:
        dac, adc = io.dac, io.adc
        for name, value in (
            ("inp_bound", dac.bound),
            ("inp_res", dac.res),
            ("out_bound", adc.bound),
            ("out_res", adc.res),
        ):
            # aihwkit treats values that are not positive as infinite.
            yield f"config.forward.{name} = {-1.0 if value is None else value!r}"
        names = [n for n in _FORWARD if n != "mv_type" or io.mv_type in _MV_TYPES]
        yield from _fields("forward", io, names)
    mapping = hardware.mapping
    if mapping is None:
        for name in ("max_input_size", "max_output_size", "weight_scaling_omega"):
            yield f"config.mapping.{name} = 0"
    else:
        yield from _fields("mapping", mapping, _MAPPING)
    yield "config.mapping.digital_bias = True"
    if hardware.input_range is not None and not hardware.dynamic:
        names = _INPUT_RANGE
        yield from _fields("pre_post.input_range", hardware.input_range, names)
    for part, names in (("modifier", _MODIFIER), ("clip", _CLIP), ("remap", _REMAP)):
        value = getattr(hardware, part)
        known = value is not None and not is_own(value)
        if known and f"{part}.type" not in _unknown(hardware):
            yield from _fields(part, value, names)
    yield f"config.noise_model = {_noise_model(hardware)}"
    compensation = hardware.drift_compensation
    none = compensation is None or is_own(compensation)
    made = "None" if none else f"{type(compensation).__name__}()"
    yield f"config.drift_compensation = {made}"


def _fields(part: str, value: Any, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        field = f"{part}.{name}"
        found: Any = getattr(value, name)
        if found is None:
            if field not in _OFF:
                continue
            found = _OFF[field]
        if field in _WHOLE:
            found = int(found)
        if field in _ENUMS:
            yield f"config.{field} = {_ENUMS[field]}.{found.upper()}"
        else:
            yield f"config.{field} = {_literal(found)}"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


def _noise_model(hardware: Hardware) -> str:
    model = hardware.noise_model
    converter = hardware.converter
    made = ""
    if converter is not None and not is_own(converter):
        given = _arguments(converter, _CONVERTERS)
        # aihwkit's pairs are filled one after the other, and hold no levels.
        kind = NPairConductanceConverter if converter.rounds else type(converter)
        made = f"{kind.__name__}({given})"
    if model is None or model.type not in _NOISE:
        # aihwkit always has a noise model.
        scales = "prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0"
        given = f"g_converter={made}, " if made else ""
        return f"PCMLikeNoiseModel({given}{scales})"
    given = _arguments(model, _taken(model.type))
    # ReRamCMONoiseModel has its own converter.
    if made and model.type != "reram_cmo":
        given = f"g_converter={made}, {given}"
    if model.type == "custom_drift_pcm_like":
        names = ("g_lst", "nu_mean_lst", "nu_std_lst")
        drift = ", ".join(f"{n!r}: {_literal(getattr(model, n))}" for n in names)
        given = f"custom_drift_model={{{drift}}}, {given}"
    return f"{type(model).__name__}({given})"


def _taken(kind: str) -> tuple[str, ...]:
    """Returns the fields of a noise model that aihwkit's model of its kind takes."""
    every = _EVERY if kind != "reram_cmo" else _EVERY[:-1]  # its reads have one time
    return *_NOISE[kind], *every


def _arguments(value: Any, names: tuple[str, ...]) -> str:
    found = {name: getattr(value, name, None) for name in names}
    return ", ".join(f"{n}={_literal(v)}" for n, v in found.items() if v is not None)


_TYPES = {"clip": ("learnable_per_channel",), "modifier": ("binary",)}
"""Types of a part that aihwkit does not have."""


def _unknown(hardware: Hardware) -> list[str]:
    return [
        f"{part}.type"
        for part, types in _TYPES.items()
        if getattr(getattr(hardware, part), "type", None) in types
    ]


def _lost(hardware: Hardware) -> Iterator[str]:
    known = {
        "forward": {*_FORWARD, *"inp_bound inp_res inp_bits".split()}
        | {*"out_bound out_res out_bits".split()},
        "mapping": {*_MAPPING},
        "input_range": {*_INPUT_RANGE},
        "modifier": {*_MODIFIER},
        "clip": {*_CLIP},
        "remap": {*_REMAP},
        "converter": {*_CONVERTERS, "type"},
        "drift_compensation": {"type"},
    }
    for part, names in known.items():
        value = getattr(hardware, part)
        if is_own(value):
            yield f"{part}: {value.describe()}, which aihwkit does not have"
            continue
        for text in [] if value is None else changed(value):
            if text.partition("=")[0] not in names:
                yield f"{part}.{text}"
    io = hardware.forward
    if io is not None and io.mv_type not in _MV_TYPES:
        yield f"forward.mv_type={io.mv_type!r}: its InferenceTile reads in one pass"
    for field in _unknown(hardware):
        part = field.partition(".")[0]
        yield f"{field}={getattr(hardware, part).type!r}"
    for part in ("mismatch", "stuck", "drift"):
        value = getattr(hardware, part)
        if value is not None:
            yield f"{part}: {_described(value)}"
    if hardware.outputs is not None:
        yield f"outputs: {hardware.outputs.describe()}, behind the bias"
    model = hardware.noise_model
    if model is not None and model.type not in _NOISE:
        yield f"noise_model {model.type!r}: noise and drift are off"
    yield from () if model is None else _own_coefficients(model)
    if model is not None and model.type == "reram_cmo" and hardware.converter:
        yield "converter: aihwkit's ReRamCMONoiseModel has its own, a single device"
    for stage in hardware.forward.stages if hardware.forward else ():
        yield f"forward: {stage.describe()}, which aihwkit does not have"
    if hardware.drift_compensation and hardware.drift_compensation.readout == "exact":
        yield "drift_compensation.readout='exact': aihwkit measures through the tile"


def _own_coefficients(model: Any) -> Iterator[str]:
    if model.type in _NOISE:
        shape = ("type", "g_max", "g_min", "g_lst", "nu_mean_lst", "nu_std_lst")
        known = {*shape, *_taken(model.type)}
        measured = _published(model)
        for field in dataclasses.fields(model):
            value = getattr(model, field.name)
            if field.name not in known and value != getattr(measured, field.name):
                yield f"noise_model.{field.name}={value!r}"


def _published(model: Any) -> Any:
    """Returns the model of the same devices with the coefficients of its source."""
    chosen = ("g_max", "g_lst", "nu_mean_lst", "nu_std_lst")
    chosen += ("num_devices", "acceptance_range")
    given = {name: getattr(model, name, None) for name in chosen}
    return type(model)(**{k: v for k, v in given.items() if v is not None})


def _described(value: Any) -> str:
    if is_own(value):
        return value.describe()
    return ", ".join(
        f"{field.name}={getattr(value, field.name)!r}"
        for field in dataclasses.fields(value)
    )
