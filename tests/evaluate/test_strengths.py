"""`assert_active` tells effects that are off, or half as strong as configured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.periphery import (
    _tiled_matrix,
    adc,
    asymmetry,
    dac,
    input_noise,
    ir_drop,
    management,
    output_factor,
    output_noise,
    read_noise,
    saturation,
    shift,
    voltage_offset,
)
from hwtrain.weights import levels, noises

X = jax.random.normal(jax.random.key(1), (4, 24))
TILES = hw.MappingParameter(
    max_input_size=13, max_output_size=5, weight_scaling_omega=1.0
)


def measured(chip, *, features=9, x=X, **options):
    analog = hw.analogize(nn.Dense(features, **options), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    return hw.assert_active(analog, variables, x)


def of_io(**options):
    return hw.Hardware(forward=hw.IOParameters(**options), mapping=TILES)


STAGES = {
    "inp_bound": (dac.Dac, {"inp_bound": 1.0}, "DAC"),
    "inp_bits": (dac.Dac, {"inp_bits": 4}, "DAC levels"),
    "inp_asymmetry": (asymmetry.InputAsymmetry, {"inp_asymmetry": 0.1}, None),
    "inp_noise": (input_noise.InputNoise, {"inp_noise": 0.1}, None),
    "out_bits": (adc.Adc, {"out_bits": 6, "out_bound": 5.0}, "ADC rounding"),
    "out_bound": (adc.Adc, {"out_bound": 3.0}, "out_bound"),
    "out_asymmetry": (asymmetry.OutputAsymmetry, {"out_asymmetry": 0.1}, None),
    "out_noise": (output_noise.OutputNoise, {"out_noise": 0.1}, None),
    "w_noise": (
        read_noise.ReadNoise,
        {"w_noise": 0.1, "w_noise_type": "pcm_read"},
        None,
    ),
    "w_noise of inputs": (
        read_noise.ReadNoise,
        {"w_noise": 0.1, "w_noise_type": "additive_constant"},
        "w_noise",
    ),
    "out_scale": (output_factor.OutputFactor, {"out_scale": 2.0}, None),
    "out_nonlinearity": (
        saturation.Saturation,
        {"out_nonlinearity": 0.3, "out_bound": 5.0},
        None,
    ),
    "out_nonlinearity_std": (
        saturation.Saturation,
        {"out_nonlinearity": 0.3, "out_nonlinearity_std": 0.2, "out_bound": 5.0},
        "out_nonlinearity",
    ),
    "slope_calibration": (
        saturation.Saturation,
        {"out_nonlinearity": 0.3, "slope_calibration": 0.5, "out_bound": 5.0},
        None,
    ),
    "v_offset_std": (voltage_offset.VoltageOffset, {"v_offset_std": 0.1}, None),
    "r_series": (voltage_offset.VoltageOffset, {"r_series": 0.1}, None),
    "ir_drop": (ir_drop.IrDrop, {"ir_drop": 1.0}, None),
    "bound_management shift": (
        shift.Shift,
        {"bound_management": "shift", "out_bound": 2.0},
        "bound_management",
    ),
}


def weaker(around, share):
    """Returns a stage with only a share of its effect."""

    def changed(self, inner, x, ctx):
        y = around(self, inner, x, ctx)
        return share * y + (1 - share) * inner(x)

    return changed


@pytest.mark.nightly
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_strength(name, share, retraced):
    kind, options, effect = STAGES[name]
    told_of(of_io(**options), effect or name, share, kind, retraced)


def told_of(chip, effect, share, kind, retraced):
    if share == 1:
        assert effect in {row[1] for row in measured(chip).rows}
        return
    retraced.setattr(kind, "around", weaker(kind.around, share))
    with pytest.raises(ValueError, match=f"kernel: {effect}: "):
        measured(chip)


def finer(round_to_level):
    def rounded(y, converter, *, uniform=None):
        return round_to_level(16 * y, converter, uniform=uniform) / 16

    return rounded


def scaled_bound(saturate, factor):
    return lambda y, bound: saturate(y, factor * bound)


def only_rounding(convert):
    return lambda x, converter, *, uniform=None: (
        x if converter.step is None else jnp.round(x / converter.step) * converter.step
    )


def halved(field):
    """Returns a change of a stage that halves a field."""

    def change(around):
        def changed(self, inner, x, ctx):
            weak = dataclasses.replace(self, **{field: getattr(self, field) / 2})
            return around(weak, inner, x, ctx)

        return changed

    return change


def half_uniform(uniform):
    return lambda key, shape: uniform(key, shape) / 2 + 0.25


PARTLY = {
    "a DAC that never clips": (
        {"inp_bits": 6},
        (dac, "convert", only_rounding),
        "DAC",
    ),
    "an ADC with finer steps": (
        {"out_bits": 6, "out_bound": 5.0},
        (adc, "round_to_level", finer),
        "ADC rounding",
    ),
    "an ADC of twice the bound": (
        {"out_bits": 6, "out_bound": 5.0},
        (adc, "saturate", lambda f: scaled_bound(f, 2)),
        "out_bound",
    ),
    "an ADC of half the bound": (
        {"out_bound": 5.0},
        (adc, "saturate", lambda f: scaled_bound(f, 0.5)),
        "out_bound",
    ),
    "half of a frozen spread": (
        {"out_nonlinearity": 0.3, "out_nonlinearity_std": 0.2, "out_bound": 5.0},
        (saturation.Saturation, "around", halved("spread")),
        "out_nonlinearity_std",
    ),
    "half of a frozen spread of noise": (
        {"out_noise": 0.1, "out_noise_std": 0.3},
        (output_noise.OutputNoise, "around", halved("spread")),
        "out_noise_std",
    ),
    "half of stochastic rounding of inputs": (
        {"inp_bits": 4, "inp_sto_round": True},
        ("hwtrain.periphery._pipeline", "uniform", half_uniform),
        "inp_sto_round",
    ),
    "half of stochastic rounding of outputs": (
        {"out_bits": 4, "out_bound": 4.0, "out_sto_round": True},
        ("hwtrain.periphery._pipeline", "uniform", half_uniform),
        "out_sto_round",
    ),
    "another scale of inputs": (
        {"noise_management": "abs_max", "inp_bits": 6},
        (management, "noise_scale", lambda f: lambda *a, **k: f(*a, **k) / 2),
        "noise_management",
    ),
    "another constant scale": (
        {"noise_management": "constant", "nm_thres": 3.0, "inp_bits": 6},
        (management, "noise_scale", lambda f: lambda *a, **k: (1 + f(*a, **k)) / 2),
        "noise_management",
    ),
    "the scale of no sum": (
        {"noise_management": "abs_max_np_sum", "inp_bits": 6, "out_bound": 2.0},
        (management, "noise_scale", lambda f: lambda *a, **k: f(*a, **k) / 2),
        "noise_management",
    ),
    "the scale of positive inputs": (
        {"noise_management": "max", "inp_bits": 6},
        (management, "noise_scale", lambda f: lambda *a, **k: f(*a, **k) / 2),
        "noise_management",
    ),
    "fewer doublings": (
        {"bound_management": "iterative", "out_bound": 0.3, "max_bm_factor": 64.0},
        (
            management,
            "bound_scale",
            lambda f: lambda *a, **k: f(*a, **{**k, "limit": 1.0}),
        ),
        "bound_management",
    ),
    "fewer doublings from the worst case": (
        {
            "bound_management": "iterative_worst_case",
            "out_bound": 0.3,
            "nm_assumed_wmax": 0.02,
        },
        (
            management,
            "bound_scale",
            lambda f: lambda *a, **k: f(*a, **{**k, "limit": 0.5}),
        ),
        "bound_management",
    ),
    "half of an average": (
        {"noise_management": "average_abs_max", "inp_bits": 6},
        (
            _tiled_matrix,
            "ranged",
            lambda f: lambda *a, **k: (f(*a, **k)[0], f(*a, **k)[1] / 2),
        ),
        "noise_management",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("name", PARTLY)
def test_a_stage_that_acts_in_part_is_told(name, off, retraced):
    options, (module, target, change), effect = PARTLY[name]
    if not off:
        assert effect in {row[1] for row in measured(of_io(**options)).rows}
        return
    where = f"{module}.{target}" if isinstance(module, str) else None
    if where:
        module = __import__(module, fromlist=["_"])
    retraced.setattr(module, target, change(getattr(module, target)))
    with pytest.raises(ValueError, match=f"kernel: {effect}: "):
        measured(of_io(**options))


MODIFIERS = {
    "add_normal": {"std_dev": 0.1},
    "mult_normal": {"std_dev": 0.1},
    "poly": {"std_dev": 1.0},
    "prog_noise": {"std_dev": 1.0},
    "pcm_noise": {"std_dev": 1.0, "pcm_t_inference": 1e6},
    "discretize": {"res": 0.05},
    "dorefa": {"res": 0.05},
    "discretize_add_normal": {"res": 0.2, "std_dev": 0.1},
    "drop_connect": {"pdrop": 0.1},
    "copy": {"pdrop": 0.1},
}
OPTIONS = {
    "": {},
    "stochastic": {"sto_round": True},
    "dropped": {"pdrop": 0.1},
    "per column": {"per_column": True},
    "assumed": {"rel_to_actual_wmax": False, "assumed_wmax": 0.7},
    "redrawn": {"redraw": True},
    "each example": {"per_batch_sample": True},
    "each vector": {"per_vector": True},
    "no bias": {"copy_last_column": True},
}


def modifiers():
    for kind, fields in MODIFIERS.items():
        for name, options in OPTIONS.items():
            try:
                part = hw.WeightModifierParameter(type=kind, **{**fields, **options})
            except ValueError:
                continue  # an option that has no effect on this type
            yield pytest.param(part, id=f"{kind} {name}".strip())


def half_changed(changed, share):
    def weak(self, key, w, *rest):
        return w + share * (changed(self, key, w, *rest) - w)

    return weak


@pytest.mark.nightly
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("part", list(modifiers()))
def test_a_modifier_has_its_strength(part, share, retraced):
    chip = hw.Hardware(modifier=part)
    if share == 1:
        assert "modifier" in {row[1] for row in measured(chip).rows}
        return
    kind = hw.WeightModifierParameter
    if part.per_vector:
        sigma = kind.sigma
        retraced.setattr(kind, "sigma", lambda *args: share * sigma(*args))
    else:
        retraced.setattr(kind, "_changed", half_changed(kind._changed, share))
    with pytest.raises(ValueError, match="kernel: modifier: "):
        measured(chip)


def half_step(discretize):
    return lambda w, w_max, *, res, **more: discretize(w, w_max, res=res / 4, **more)


def as_it_is(change):
    return lambda key, w, *args, **options: w


def unrounded(discretize):
    return lambda w, *args, **options: w


def a_quarter(noise):
    return lambda *args, std_dev, **more: noise(*args, std_dev=std_dev / 4, **more)


def half_dropped(drop):
    return lambda key, w, *, pdrop, **more: drop(key, w, pdrop=pdrop / 2, **more)


PARTS_OF_MODIFIERS = {
    "finer levels": ("discretize", levels, "discretize", half_step),
    "no levels": ("discretize", levels, "discretize", unrounded),
    "noise without its levels": (
        "discretize_add_normal",
        levels,
        "discretize",
        unrounded,
    ),
    "levels with a quarter of the noise": (
        "discretize_add_normal",
        noises,
        "add_normal",
        a_quarter,
    ),
    "noise without drops": ("add_normal dropped", noises, "drop_connect", as_it_is),
    "a quarter of the noise with drops": (
        "add_normal dropped",
        noises,
        "add_normal",
        a_quarter,
    ),
    "half of the drops": ("drop_connect", noises, "drop_connect", half_dropped),
    "half of the drops of levels": (
        "discretize dropped",
        noises,
        "drop_connect",
        half_dropped,
    ),
    "a polynomial of half": (
        "poly",
        noises,
        "poly_sigma",
        lambda f: lambda *a, **k: f(*a, **k) / 2,
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PARTS_OF_MODIFIERS)
def test_a_modifier_that_acts_in_part_is_told(name, retraced):
    of, module, target, change = PARTS_OF_MODIFIERS[name]
    part = next(case.values[0] for case in modifiers() if case.id == of)
    retraced.setattr(module, target, change(getattr(module, target)))
    with pytest.raises(ValueError, match="kernel: modifier: "):
        measured(hw.Hardware(modifier=part))


CLIPS = {
    "fixed_value": {"type": "fixed_value", "fixed_value": 1.0},
    "layer_gaussian": {"type": "layer_gaussian", "sigma": 2.0},
    "of columns": {"type": "layer_gaussian", "sigma": 1.5, "per_column": True},
    "limited": {"type": "layer_gaussian", "fixed_value": 0.5},
    "average_channel_max": {"type": "average_channel_max"},
}


@pytest.mark.nightly
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5, np.inf])
@pytest.mark.parametrize("mapping", [None, TILES], ids=["one tile", "tiles"])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_its_bound(name, mapping, factor, retraced):
    chip = hw.Hardware(clip=hw.WeightClipParameter(**CLIPS[name]), mapping=mapping)
    if factor != 1:
        bound = hw.WeightClipParameter.bound
        retraced.setattr(
            hw.WeightClipParameter, "bound", lambda *a, **k: factor * bound(*a, **k)
        )
        with pytest.raises(ValueError, match="kernel: clip: "):
            measured(chip)
    else:
        assert "clip" in {row[1] for row in measured(chip).rows}
