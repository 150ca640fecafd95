"""The columns of `inspect`: what each part of an analog weight's hardware does."""

import dataclasses
import math
from typing import Any

import numpy as np

from hwtrain.hardware import (
    ConductanceConverter,
    Hardware,
    IOParameters,
    Mismatch,
    WeightClip,
    WeightModifier,
)
from hwtrain.hardware.weights import CLIP_BOUND
from hwtrain.periphery.range import RANGE
from hwtrain.plan import AnalogWeight, Plan
from hwtrain.transforms.physical import bits, conductance_noise
from hwtrain.transforms.weight_side import local


def columns(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> dict[str, str]:
    """Returns the columns of a weight by name.

    Args:
      weight: the weight.
      plan: its plan.
      values: the parameters by path.
    """
    chip = weight.hardware
    own = any(other.own_leaves for other in plan.weights)
    return {
        "weight": weight.path,
        "layer": _layer(weight),
        "derived": weight.derived or "no",
        "shape": "x".join(map(str, weight.shape)),
        "tiles": _tiles(weight),
        "scale": _scale(chip),
        "output scale": _output_scale(weight),
        "input range": _range(weight, plan, values),
        "bits": bits(chip) if weight.kind != "raw" else "none",
        "periphery": _periphery(weight),
        "weight noise": _noise(chip),
        "clip": _clip(weight, plan, values),
        "remap": _remap(chip),
        "training drift": _drift(chip),
        "mismatch": _mismatch(chip),
        "conductances": _converter(chip),
        "programming": _noise_model(chip),
        "noise at g_max": conductance_noise(chip),
        "stuck": _stuck(chip),
        **({"leaves": _leaves(weight, plan, values)} if own else {}),
        "by": weight.rule,
    }


def _layer(weight: AnalogWeight) -> str:
    """Returns the layer's class, and how the window of a convolution moves."""
    window = weight.window
    if window is None:
        return weight.layer or "parameter"
    steps = (
        ("stride", window.strides),
        ("dilation", window.kernel_dilation),
        ("input dilation", window.input_dilation),
    )
    padding = window.border_mode if window.border else window.padding
    facts = [f"{weight.layer} {'x'.join(map(str, window.sizes))}"]
    facts += [f"{name} {'x'.join(map(str, s))}" for name, s in steps if max(s) > 1]
    facts += [f"padding {padding}"]
    facts += [f"{window.groups} groups"] if window.groups > 1 else []
    facts += ["weights of its own at each position"] if window.local else []
    facts += ["masked"] if window.mask else []
    return ", ".join(facts)


def _tiles(weight: AnalogWeight) -> str:
    rows, columns = weight.tiles
    largest = f"{weight.row_sizes[0]}x{weight.column_sizes[0]}"
    stack = f"{math.prod(weight.stack)} x " if weight.stack else ""
    used = sum(weight.row_sizes) * sum(weight.column_sizes)
    mapping = weight.hardware.mapping
    limits = (
        mapping and mapping.max_input_size or weight.row_sizes[0],
        mapping and mapping.max_output_size or weight.column_sizes[0],
    )
    share = used / (rows * columns * limits[0] * limits[1])
    return f"{stack}{rows}x{columns} of {largest}, {share:.0%} used"


def _scale(chip: Hardware) -> str:
    if chip.mapping is None or chip.mapping.weight_scaling_omega == 0:
        start = "stored, 1 at first, remapped" if chip.remaps else "stored, 1"
        return start if chip.stores_scale else "1"
    each = "column" if chip.mapping.weight_scaling_columnwise else "tile"
    how = "stored, remapped" if chip.remaps else "stored"
    how = how if chip.stores_scale else "derived"
    return f"max|W|/{chip.mapping.weight_scaling_omega:g} per {each}, {how}"


def _output_scale(weight: AnalogWeight) -> str:
    if not weight.hardware.scales_outputs or weight.hardware.mapping is None:
        return "1"
    each = "column" if weight.hardware.mapping.out_scaling_columnwise else "row tile"
    return f"learned per {each}"


def _range(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> str:
    parameter = weight.hardware.input_range
    if parameter is not None and parameter.dynamic and weight.kind != "raw":
        return "dynamic, max|x| of each vector"
    if not weight.ranged:
        return _fixed_range(weight)
    value = values.get(local(plan, weight.leaf(RANGE)))
    if value is None:
        return "missing: see hwtrain.adopt"
    value = np.asarray(value)
    start = parameter.init_value if parameter is not None else 1.0
    if (value == np.float32(start)).all():
        return f"{start:g}, not initialised from data"
    low, high = value.min(), value.max()
    what = "average of max|x| " if weight.hardware.averages else ""
    return what + (f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}")


def _leaves(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> str:
    """Returns the leaves of users' parts."""
    found = []
    for leaf in weight.own_leaves:
        value = np.asarray(values[local(plan, weight.leaf(leaf))], np.float32)
        low, high = value.min(), value.max()
        each = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        found.append(f"{leaf.name} {each} ({leaf.unit})")
    return ", ".join(found) or "none"


def _fixed_range(weight: AnalogWeight) -> str:
    """Returns where inputs are cut that nothing fits to the DAC."""
    chip = weight.hardware
    if weight.kind == "raw" or chip.forward is None or chip.dynamic:
        return "none"
    bound = chip.forward.dac.bound
    if bound is None or chip.forward.noise_management != "none":
        return "none"
    return f"none: inputs are cut at {bound:g}"


def _periphery(weight: AnalogWeight) -> str:
    """Returns what differs from the ideal, in the names of `IOParameters`."""
    if not weight.hardware.converts or weight.kind == "raw":
        return "none"
    io, ideal = weight.hardware.forward, IOParameters()
    fields = [f.name for f in dataclasses.fields(ideal) if f.name != "stages"]
    parts = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in ((name, getattr(io, name)) for name in fields)
        if value != getattr(ideal, name)
    ]
    parts += [stage.describe() for stage in (io or ideal).stages]
    # A look-up reads weights and multiplies by none.
    return ", ".join(parts + (["in attend only"] if weight.kind == "embed" else []))


def _noise(chip: Hardware) -> str:
    modifier = chip.modifier
    if modifier is None or not modifier.acts:
        return "none"
    when = "train, chip" if modifier.enable_during_test else "train"
    if isinstance(modifier, WeightModifier):
        return f"{modifier.describe()} ({when})"
    amounts = (("", "std_dev"), ("res ", "res"), ("drop ", "pdrop"))
    strength = ", ".join(
        f"{label}{getattr(modifier, name):g}"
        for label, name in amounts
        if getattr(modifier, name) > 0
    )
    what = f"{modifier.type} {strength}".rstrip() + _each(modifier)
    for name in ("per_batch_sample", "per_vector", "copy_last_column"):
        if getattr(modifier, name):
            what += f", {name}"
    what += ", redrawn" if modifier.redraw else ""
    return f"{what} ({when})"


def _each(parameter: Any) -> str:
    return " per column" if parameter.per_column else ""


def _clip(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> str:
    chip = weight.hardware
    if chip.clip is not None and chip.clip.learned:
        value = values.get(local(plan, weight.leaf(CLIP_BOUND)))
        if value is None:
            return "missing: see hwtrain.adopt"
        low, high = np.min(np.asarray(value)), np.max(np.asarray(value))
        return f"{chip.clip.type} {low:.3g} to {high:.3g}"
    if chip.clip is None or not chip.clip.active:
        return "none"
    if isinstance(chip.clip, WeightClip):
        return chip.clip.describe()
    bound = f"{chip.clip.sigma:g} std{_each(chip.clip)}"
    if chip.clip.type == "fixed_value":
        bound = f"{chip.clip.fixed_value:g}"
    elif chip.clip.type == "average_channel_max":
        return chip.clip.type
    return f"{chip.clip.type} {bound}"


def _remap(chip: Hardware) -> str:
    if chip.remap is None or not chip.remap.active:
        return "none"
    limit = f", scales up to {chip.remap.max_scale_range:g} x the smallest"
    return (
        f"{chip.remap.type} to {chip.remap.remapped_wmax:g}"
        f"{limit if chip.remap.max_scale_range else ''}"
    )


def _drift(chip: Hardware) -> str:
    drift = chip.drift
    if drift is None or not drift.acts:
        return "none"
    return (
        f"{drift.type}, nu {drift.nu:g} from {drift.t_0:g} s, {drift.dt_s:g} s per step"
    )


def _mismatch(chip: Hardware) -> str:
    if isinstance(chip.mismatch, Mismatch):
        return chip.mismatch.describe()
    if chip.mismatch is None or not chip.mismatch.draws:
        return "none"
    unit = "" if chip.mismatch.rel_to_actual_wmax else " absolute"
    each = _each(chip.mismatch)
    return f"{chip.mismatch.type} {chip.mismatch.std_dev:g}{unit}{each}"


def _converter(chip: Hardware) -> str:
    if chip.converter is None:
        return "none"
    converter: Any = chip.converter
    own = isinstance(converter, ConductanceConverter)
    what = converter.describe() if own else converter.type
    return f"{what}, {converter.g_min:g} to {converter.g_max:g} µS"


def _noise_model(chip: Hardware) -> str:
    model = chip.noise_model
    if model is None:
        return "none"
    scales = ("prog_noise_scale", "noise_scale", "drift_scale", "read_noise_scale")
    changed = "".join(
        f", {name} {getattr(model, name):g}"
        for name in scales
        if getattr(model, name, 1.0) != 1.0
    )
    compensation = chip.drift_compensation
    undone = f", {compensation.type} drift compensation" if compensation else ""
    return f"{model.describe()}{changed}{undone}"


def _stuck(chip: Hardware) -> str:
    if chip.stuck is None or not chip.stuck.draws:
        return "none"
    shares = (("g_min", chip.stuck.at_g_min), ("g_max", chip.stuck.at_g_max))
    return ", ".join(f"{share:.2%} at {end}" for end, share in shares if share)
