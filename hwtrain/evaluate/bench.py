"""A test bench for the analog layers of a running model.

Every layer is measured in place, with the leaves, the weights and the mode that its
model gives it: what its multiplication does to test vectors, with each effect and
without.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import nan

from hwtrain._parts.part import Part
from hwtrain.evaluate.judgement import ENOUGH
from hwtrain.hardware import Hardware, InputRangeParameter, IOParameters
from hwtrain.hardware.mapping_scale import MAPPING_SCALE, OUTPUT_SCALE
from hwtrain.periphery.range import RANGE
from hwtrain.physics import tiling
from hwtrain.transforms.loops import as_new_root
from hwtrain.transforms.observation import Multiplication, observed
from hwtrain.transforms.signal_side import multiply

GROUPS = {
    "DAC": ("inp_bits", "inp_res", "inp_bound", "inp_sto_round"),
    "inp_sto_round": ("inp_sto_round",),
    "inp_noise": ("inp_noise",),
    "inp_asymmetry": ("inp_asymmetry",),
    "ADC rounding": ("out_bits", "out_res", "out_sto_round"),
    "out_sto_round": ("out_sto_round",),
    "out_noise": ("out_noise", "out_noise_std"),
    "out_noise_std": ("out_noise_std",),
    "out_asymmetry": ("out_asymmetry",),
    "out_scale": ("out_scale",),
    "noise_management": ("noise_management", "nm_thres", "nm_decay"),
    "w_noise": ("w_noise", "w_noise_type"),
    "ir_drop": ("ir_drop", "ir_drop_g_ratio"),
    "out_nonlinearity": (
        "out_nonlinearity",
        "out_nonlinearity_std",
        "slope_calibration",
    ),
    "out_nonlinearity_std": ("out_nonlinearity_std",),
    "slope_calibration": ("slope_calibration",),
    "r_series": ("r_series",),
    "v_offset_std": ("v_offset_std",),
}
"""Effects of the periphery that always act, by the options that make them."""

NOISES = ("inp_noise", "out_noise", "w_noise")
"""Effects whose strength is known in closed form."""

KEYS = 8
"""Steps that are measured, each with a key of its own; more of very small layers."""

VECTORS = 6
"""Test vectors, of each of which a noise is drawn."""


class Readings(NamedTuple):
    """What the bench reads of one multiplication.

    Attributes:
      w: `[rows, columns]`, the weights that the layer got.
      changes: by effect, the relative deviation of the outputs without it.
      unit: by noise, its draws over their configured deviation, `[vectors, columns]`;
        NaN where that is zero, in columns of zeros.
      drawn: by stage that draws at each read, the outputs with it alone, of the test
        vectors and of the same again.
      levels: outputs at 0, 0.4, 0.6 and 1 steps of the DAC, `[4, columns]`.
      clipped: outputs at 1.5 and 3 ranges, `[2, columns]`.
      range_gradient: gradient of the input range, of an output that wants to grow.
    """

    w: jax.Array
    changes: dict[str, jax.Array]
    unit: dict[str, jax.Array]
    drawn: dict[str, jax.Array]
    levels: jax.Array | None
    clipped: jax.Array | None
    range_gradient: jax.Array | None


def read(call: Multiplication) -> Readings:
    """Returns the readings of a multiplication that a layer is about to do."""
    chip = call.weight.hardware
    x = _test_vectors(call)
    # Most effects are told from the same chip: it is traced once.
    of = functools.cache(lambda chip: _run(call, chip, x))
    size = jnp.maximum(_rms(of(chip)), 1e-30)
    changes = {
        effect: _rms(of(whole) - of(other)) / size
        for effect, whole, other in _ablations(chip)
        # The first row of a tile has no wire before it.
        if effect != "ir_drop" or max(call.weight.row_sizes) > 1
    }
    ideal = _ideal(chip)
    for effect, other, base in _bounds(chip, ideal):
        large = _beyond(call, base, x)
        changes[effect] = _rms(_run(call, other, large) - _run(call, base, large))
    units = {
        effect: _noise(call, ideal, effect, x)
        for effect in NOISES
        if chip.forward is not None and getattr(chip.forward, effect) > 0
    }
    drawn = {
        stage.type: _run(call, _with_stage(ideal, stage), jnp.concatenate([x, x]))
        for stage in (chip.forward.stages if chip.forward is not None else ())
        if stage.draws_at("read")
    }
    return Readings(
        call.w, changes, units, drawn, _levels(call, ideal), *_range(call, ideal)
    )


def _with_stage(ideal: Hardware, stage: Part) -> Hardware:
    """Returns a chip with nothing around its tiles but one stage."""
    return dataclasses.replace(ideal, forward=IOParameters(stages=(stage,)))


def _run(call: Multiplication, chip: Hardware, x: Any, **leaves: Any) -> jax.Array:
    """Multiplies as the layer would on a chip of another type."""
    weight = dataclasses.replace(call.weight, hardware=chip, ranged=chip.ranged)
    changed = call._replace(
        weight=weight, x=x.astype(call.x.dtype), leaves={**call.leaves, **leaves}
    )
    with observed(None):  # every time the first call, to be compared with itself
        return as_new_root(multiply, changed).astype(jnp.float32)


def _test_vectors(call: Multiplication) -> jax.Array:
    """Returns `[VECTORS, rows]`, some well inside the range and some beyond it."""
    rows = call.x.shape[-1]
    x = np.random.default_rng(0).normal(size=(VECTORS, rows)).astype(np.float32)
    x = x * np.array([0.3, 0.3, 1, 1, 3, 3], np.float32)[:, None]
    return x * _largest_range(call)


def _largest_range(call: Multiplication) -> Any:
    return jnp.max(call.leaves[RANGE.name]) if call.weight.ranged else 1.0


def _rms(y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(y)))


def _ideal(chip: Hardware) -> Hardware:
    """Returns a chip with the same mapping, and nothing around it."""
    return dataclasses.replace(chip, modifier=None, forward=None, input_range=None)


def _ablations(chip: Hardware) -> Iterator[tuple[str, Hardware, Hardware]]:
    """Yields effects that are configured, and the chip with and without each."""
    rounding = ("ADC rounding", "out_sto_round")
    for effect in rounding:
        if _configured(chip, effect):
            yield effect, chip, _without(chip, effect)
    # What else there is may be smaller than a step of the ADC.
    chip = _without(chip, rounding[0])
    for effect in GROUPS:
        if effect not in rounding and _configured(chip, effect):
            yield effect, chip, _without(chip, effect)
    for stage in chip.forward.stages if chip.forward is not None else ():
        yield stage.type, chip, _without_stage(chip, stage)
    if chip.modifies_in_layer("train"):
        yield "modifier", chip, dataclasses.replace(chip, modifier=None)
    if chip.input_range is not None and chip.input_range.enable:
        # Bounds of the converters may clip where the range does. Only what adapts to
        # each vector needs the levels of the DAC to be seen.
        whole = chip if chip.dynamic else _unbounded(chip)
        yield "input_range", whole, dataclasses.replace(whole, input_range=None)


def _without_stage(chip: Hardware, stage: Part) -> Hardware:
    """Returns the chip without a stage that is no field of its periphery."""
    assert chip.forward is not None
    left = tuple(other for other in chip.forward.stages if other != stage)
    io = dataclasses.replace(chip.forward, stages=left)
    return dataclasses.replace(chip, forward=_around(io) if chip.dynamic else io)


def _configured(chip: Hardware, effect: str) -> bool:
    """Whether the option that is most the effect differs from the ideal."""
    io, ideal = chip.forward, IOParameters()
    levels = {"DAC": 3, "ADC rounding": 2}  # one of several turns these on
    names = GROUPS[effect][: levels.get(effect, 1)]
    return any(getattr(io or ideal, name) != getattr(ideal, name) for name in names)


def _without(chip: Hardware, effect: str) -> Hardware:
    """Returns the chip without an effect, and what would do nothing without it."""
    io, ideal = chip.forward, IOParameters()
    if io is None:
        return chip
    names = list(GROUPS[effect])
    if effect == "noise_management" and io.bound_management != "iterative_worst_case":
        names += ["nm_assumed_wmax"]
    if effect == "DAC":
        names += ["max_bm_res"]
    reset: dict[str, Any] = {name: getattr(ideal, name) for name in names}
    if effect == "r_series" and io.v_offset_std == 0:
        reset["v_offset_w_min"] = ideal.v_offset_w_min
    if effect == "v_offset_std" and io.r_series == 0:
        reset["v_offset_w_min"] = ideal.v_offset_w_min
    if effect == "r_series" and io.out_nonlinearity == 0:
        reset["slope_calibration"] = ideal.slope_calibration
    io = dataclasses.replace(io, **reset)
    if chip.dynamic:  # its range needs something around it
        io = _around(io)
    return dataclasses.replace(chip, forward=io)


def _unbounded(chip: Hardware) -> Hardware:
    """Returns the chip without what clips but its range."""
    parameter, io, ideal = chip.input_range, chip.forward, IOParameters()
    if parameter is not None:
        parameter = _alone(parameter)
    if io is not None and chip.converts:
        limits = ("DAC", "ADC rounding", "out_nonlinearity")
        names = (name for limit in limits for name in GROUPS[limit])
        managed = ("bound_management", "max_bm_factor", "max_bm_res")
        names = (*names, *managed, "nm_assumed_wmax", "out_bound")
        reset: dict[str, Any] = {name: getattr(ideal, name) for name in names}
        io = _around(dataclasses.replace(io, **reset))
    return dataclasses.replace(chip, forward=io, input_range=parameter)


def _around(io: IOParameters) -> IOParameters:
    """Returns the same, with something around the tiles even if that does nothing."""
    return IOParameters(inp_asymmetry=1e-30) if io == IOParameters() else io


def _alone(parameter: InputRangeParameter) -> InputRangeParameter:
    """Returns a range that does not ask for an ADC."""
    return dataclasses.replace(
        parameter, manage_output_clipping=False, output_min_percentage=0.95
    )


def _bounds(
    chip: Hardware, ideal: Hardware
) -> Iterator[tuple[str, Hardware, Hardware]]:
    """Yields effects that act beyond the ADC's bound: with them, and without."""
    io = chip.forward
    if io is None or io.out_bound is None:
        return
    bounded = dataclasses.replace(ideal, forward=IOParameters(out_bound=io.out_bound))
    yield "out_bound", bounded, ideal
    if io.bound_management != "none":
        managed = IOParameters(
            out_bound=io.out_bound,
            bound_management=io.bound_management,
            max_bm_factor=io.max_bm_factor,
        )
        yield "bound_management", dataclasses.replace(ideal, forward=managed), bounded


def _beyond(call: Multiplication, base: Hardware, x: jax.Array) -> jax.Array:
    """Returns the vectors so large that their outputs exceed the ADC's bound."""
    io = call.weight.hardware.forward
    bound = io.out_bound if io is not None and io.out_bound else 1.0
    y = jnp.max(jnp.abs(_run(call, _ideal(base), x)))
    return x * 3 * bound * jnp.max(_scale(call)) / jnp.maximum(y, 1e-30)


def _scale(call: Multiplication) -> jax.Array:
    """Returns the factor from the unit of the crossbar to the output's."""
    scale = call.leaves.get(MAPPING_SCALE.name)
    if scale is None:
        scale = call.weight.derived_scale(call.w)
    scale = jnp.ones(call.weight.tiles) if scale is None else scale
    scale = call.weight.of_columns(scale)
    return abs(scale * call.leaves.get(OUTPUT_SCALE.name, 1.0))


def _noise(
    call: Multiplication, ideal: Hardware, effect: str, x: jax.Array
) -> jax.Array:
    r"""Returns draws of a noise over its configured deviation, each tile at range 1.

    .. math::
        \text{inp:}\ \sigma \sqrt{\textstyle\sum_j W_j^2} \quad
        \text{out:}\ \sigma \sqrt{\textstyle\sum_r s_r^2} \quad
        \text{additive:}\ \sigma \sqrt{\textstyle\sum_r s_r^2 \|x_r\|^2} \quad
        \text{PCM:}\ \sigma \sqrt{\textstyle\sum_r s_r \sum_{j \in r} |W_j| x_j^2}
    """
    io: Any = call.weight.hardware.forward
    options: dict[str, Any] = {effect: getattr(io, effect)}
    if effect == "w_noise":
        options["w_noise_type"] = io.w_noise_type
    chip = dataclasses.replace(ideal, forward=IOParameters(**options))
    # All columns share a noise of the inputs, which a vector therefore draws once.
    alike = 1 if effect == "inp_noise" else call.w.shape[-1]
    x = jnp.tile(x, (-(-2 * ENOUGH // (KEYS * VECTORS * alike)), 1))
    if effect != "w_noise":
        x = 0 * x  # on which it does not depend, and narrow outputs round as they are
    w, sizes = call.w.astype(jnp.float32), call.weight.row_sizes
    scale = tiling.expand_rows(_scale(call), sizes)
    gamma = tiling.expand_rows(
        call.leaves.get(OUTPUT_SCALE.name, jnp.ones((len(sizes), 1))), sizes
    )
    square = jnp.square(x)
    if effect == "inp_noise":
        variance = jnp.sum(jnp.square(w * gamma), axis=0, keepdims=True)
    elif effect == "out_noise":
        variance = jnp.sum(jnp.square(_scale(call)), axis=0, keepdims=True)
    elif io.w_noise_type == "additive_constant":
        variance = square @ jnp.broadcast_to(jnp.square(scale), w.shape)
    else:
        variance = square @ (abs(w * gamma) * scale)
    deviation = options[effect] * jnp.sqrt(variance)
    noise = _run(call, chip, x) - _run(call, ideal, x)
    return jnp.where(deviation > 0, noise / jnp.where(deviation > 0, deviation, 1), nan)


def _levels(call: Multiplication, ideal: Hardware) -> jax.Array | None:
    io: Any = call.weight.hardware.forward
    step = io.dac.converter.step if io is not None else None
    if step is None:
        return None
    options = {name: getattr(io, name) for name in ("inp_bits", "inp_res", "inp_bound")}
    chip = dataclasses.replace(ideal, forward=IOParameters(**options))
    steps = step * np.array([0.0, 0.4, 0.6, 1.0], np.float32)[:, None]
    return _run(call, chip, jnp.asarray(steps) * _unlike_zero(call))


def _unlike_zero(call: Multiplication) -> jax.Array:
    """Returns inputs of plus and minus one whose outputs do not cancel in a column."""
    signs = jnp.where(call.w[:, _heaviest(call)] < 0, -1.0, 1.0)
    return signs.astype(jnp.float32)[None]


def _heaviest(call: Multiplication) -> jax.Array:
    """Returns the column with the largest weights; another may be all zeros."""
    return jnp.argmax(jnp.sum(jnp.abs(call.w.astype(jnp.float32)), axis=0))


def _range(
    call: Multiplication, ideal: Hardware
) -> tuple[jax.Array | None, jax.Array | None]:
    parameter = call.weight.hardware.input_range
    if parameter is None or not call.weight.ranged:
        return None, None
    chip = dataclasses.replace(ideal, input_range=_alone(parameter))
    beyond = _largest_range(call) * np.array([[1.5], [3.0]], np.float32)
    beyond = beyond * _unlike_zero(call)
    clipped = _run(call, chip, beyond)

    def shrink(r: jax.Array) -> jax.Array:
        # Its gradient at the input is minus the sign of the input in that column.
        return -_run(call, chip, beyond, input_range=r)[:, _heaviest(call)].sum()

    return clipped, jax.grad(shrink)(call.leaves[RANGE.name])


def undisturbed(call: Multiplication) -> jax.Array:
    """Does the multiplication as the layer would have."""
    with observed(None):
        return multiply(call)
