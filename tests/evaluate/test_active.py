"""`assert_active`: a complete chip passes, and every sabotaged effect is reported."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax import functional, signal_side, weight_side
from hwtrain.checkpoint import _crossbars as crossbars
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate import _exported as exported
from hwtrain.evaluate import _unwatched as unwatched
from hwtrain.evaluate import _updates as updates
from hwtrain.evaluate._watching import watching
from hwtrain.periphery import _pipeline as pipeline
from hwtrain.periphery import (
    adc,
    asymmetry,
    dac,
    ir_drop,
    management,
    read_noise,
    saturation,
)
from hwtrain.periphery import input_range as range_stage
from hwtrain.periphery._pipeline import Context
from hwtrain.periphery._read_keys import read_keys

X = jax.random.normal(jax.random.key(0), (4, 6))
IO = hw.IOParameters(
    inp_bits=6,
    inp_noise=0.05,
    inp_asymmetry=0.05,
    out_bits=8,
    out_bound=3.0,
    out_noise=0.05,
    out_asymmetry=0.02,
    w_noise=0.03,
    w_noise_type="pcm_read",
    ir_drop=1.0,
    ir_drop_g_ratio=1000.0,
)
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
    input_range=hw.InputRangeParameter(),
    forward=IO,
    mapping=hw.MappingParameter(
        max_input_size=4, weight_scaling_omega=1.0, learn_out_scaling=True
    ),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
)


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="a")(x)


class NnxModel(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(6, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.a(x)


def linen(chip=CHIP):
    analog = hw.analogize(LinenModel(), chip)
    return analog, jax.jit(analog.init)(jax.random.key(0), X), X


def of_nnx(chip=CHIP):
    return hw.analogize(NnxModel(), chip, rngs=nnx.Rngs(mismatch=0)), None, X


@pytest.mark.parametrize("model", [linen, of_nnx])
def test_a_chip_passes_in_both_frameworks(model):
    light = hw.Hardware(
        modifier=CHIP.modifier,
        input_range=CHIP.input_range,
        forward=hw.IOParameters(inp_bits=6, out_noise=0.05),
    )
    found = hw.assert_active(*model(light))
    assert {row[1] for row in found.rows} == {
        *("modifier", "DAC", "DAC levels", "out_noise", "input_range"),
        *("input_range clips", "input_range learns", "input_range moves"),
    }


@pytest.mark.nightly
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_every_effect_of_a_chip_is_found_on(model):
    found = hw.assert_active(*model())
    effects = {row[1] for row in found.rows}
    assert effects >= {
        *(
            "modifier",
            "DAC",
            "DAC levels",
            "inp_noise",
            "inp_asymmetry",
            "ADC rounding",
        ),
        *("out_noise", "out_asymmetry", "out_bound", "w_noise", "ir_drop", "clip"),
        *("input_range", "input_range clips", "input_range learns"),
        *("input_range moves", "remap", "mismatch", "converter"),
    }
    assert all(path == "a/kernel" for path, *_ in found.rows)
    assert "a/kernel: modifier: " in str(found)


def parts(**options):
    return hw.Hardware(**options)


ONLY = {
    "modifier": parts(modifier=CHIP.modifier),
    "input_range": parts(input_range=CHIP.input_range),
    "clip": parts(clip=CHIP.clip),
    "remap": parts(remap=CHIP.remap),
    "mismatch": parts(mismatch=CHIP.mismatch),
    "noise_model": hw.presets.pcm(),
    "stuck": parts(
        stuck=hw.devices.stuck.StuckParameter(at_g_min=0.05, at_g_max=0.02),
        converter=CHIP.converter,
    ),
    "drift_compensation": dataclasses.replace(
        hw.presets.pcm(),
        drift_compensation=hw.devices.drift_compensation.GlobalDriftCompensation(),
    ),
    **{
        name: parts(forward=hw.IOParameters(**options))
        for name, options in {
            "DAC": {"inp_bits": 4},
            "inp_noise": {"inp_noise": 0.1},
            "ADC": {"out_bits": 4, "out_bound": 2.0},
            "out_noise": {"out_noise": 0.1},
            "w_noise": {"w_noise": 0.1, "w_noise_type": "additive_constant"},
            "ir_drop": {"ir_drop": 1.0, "ir_drop_g_ratio": 100.0},
            "out_asymmetry": {"out_asymmetry": 0.1},
            "out_nonlinearity": {"out_nonlinearity": 0.5, "out_bound": 4.0},
            "bound_management": {"out_bound": 1.0, "bound_management": "iterative"},
        }.items()
    },
}


def unscaled(scale, read, **kwargs):
    return scale, read(0, scale)[1]


def identity(x, *args, **kwargs):
    return x


def same(function):
    return identity


def none(function):
    return lambda *args, **kwargs: 0.0


def fixed(bound_scale):
    return unscaled


def silent(normal):
    return lambda key, shape: jnp.zeros(shape)


def weak(normal):
    return lambda key, shape: 0.5 * normal(key, shape)


def one_key(effect_key):
    return lambda keys, name: effect_key(read_keys(jax.random.key(0)), name)


SABOTAGE = {
    "modifier": ("modifier", weight_side, "_modified", lambda f: lambda w, k, *_: k),
    "input_range": ("input_range", signal_side, "ranged_matmul", None),
    "no range gradient": ("input_range learns", signal_side, "ranged_matmul", "fixed"),
    "DAC": ("DAC", dac, "convert", same),
    "ADC": ("ADC rounding", adc, "round_to_level", same),
    "ADC bound": ("out_bound", adc, "saturate", same),
    "out_noise": (
        "out_noise",
        pipeline,
        "normal",
        silent,
    ),
    "weak noise": ("out_noise", pipeline, "normal", weak),
    "repeated noise": ("out_noise", pipeline, "effect_key", one_key),
    "inp_noise": (
        "inp_noise",
        pipeline,
        "normal",
        silent,
    ),
    "w_noise": (
        "w_noise",
        read_noise.ReadNoise,
        "around",
        lambda f: lambda self, inner, x, ctx: inner(x),
    ),
    "ir_drop": ("ir_drop", ir_drop, "dropped", none),
    "out_asymmetry": ("out_asymmetry", asymmetry, "weakened", same),
    "out_nonlinearity": (
        "out_nonlinearity",
        saturation,
        "saturating",
        same,
    ),
    "bound_management": (
        "bound_management",
        management,
        "bound_scale",
        fixed,
    ),
}
CHIP_OF = {
    "no range gradient": "input_range",
    "ADC bound": "ADC",
    "weak noise": "out_noise",
    "repeated noise": "out_noise",
}


def unranged(ranged_matmul):
    def multiply(x, w, input_range, *args, **kwargs):
        return ranged_matmul(x, w, 1e9 * jnp.ones_like(input_range), *args, **kwargs)

    return multiply


def without_gradient(ranged_matmul):
    def multiply(x, w, input_range, *args, **kwargs):
        fixed = jax.lax.stop_gradient(input_range)
        return ranged_matmul(x, w, fixed, *args, **kwargs)

    return multiply


OFTEN = ("modifier", "input_range", "no range gradient", "DAC", "out_noise", "ADC")


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.nightly)
        for name in SABOTAGE
    ],
)
def test_an_effect_of_the_forward_pass_that_is_off_is_an_error(name, retraced):
    effect, module, target, change = SABOTAGE[name]
    change = {None: unranged, "fixed": without_gradient}.get(change, change)
    model = linen(ONLY[CHIP_OF.get(name, name)])
    retraced.setattr(module, target, change(getattr(module, target)))
    with pytest.raises(ValueError, match=f"a/kernel: {effect}: "):
        hw.assert_active(*model)


DEPLOYED = {
    "clip": ("clip", "hwtrain.optim._clip.bounded_update", lambda p, u, b: u),
    "remap": ("remap", "hwtrain.optim._remap._new_scale", lambda w, k, s: s),
    "input_range": (
        "input_range moves",
        "hwtrain.optim._input_range._change",
        lambda o, r, *rest: (jnp.zeros_like(r), rest[-1]),
    ),
    "mismatch": (
        "mismatch",
        "hwtrain.checkpoint._crossbars._chip_kernel",
        lambda geometry, kernel, scale, key, written: written,
    ),
}


@pytest.mark.parametrize("name", DEPLOYED)
def test_an_effect_of_an_update_or_an_export_that_is_off_is_an_error(name, monkeypatch):
    effect, target, change = DEPLOYED[name]
    analog, variables, x = linen(ONLY[name])
    plan = hw.plan(analog, variables, x)
    monkeypatch.setattr(target, change)
    jax.clear_caches()
    findings = [
        *updates.updated_effects(plan, variables["params"]),
        *exported.deployed_effects(plan, variables["params"]),
    ]
    jax.clear_caches()
    wrong = {found[1] for found in findings if found[2]}
    assert effect in wrong


def test_programming_noise_and_drift_are_found_in_the_export():
    analog, variables, x = linen(ONLY["noise_model"])
    plan = hw.plan(analog, variables, x)
    found = list(exported.deployed_effects(plan, variables["params"]))
    assert [(effect, wrong) for _, effect, wrong, _ in found] == [
        ("converter", None),
        ("noise_model", None),
        ("drift", None),
        ("programming noise", None),
        ("drift", None),
        ("read noise", None),
    ]


def test_a_layer_called_past_its_periphery_is_an_error(retraced):
    model = linen(ONLY["DAC"])
    retraced.setattr(
        "hwtrain._flax.linen.root.analog_call",
        lambda by_path, path, mode, context, following, args, kwargs: following(
            *args, **kwargs
        ),
    )
    with pytest.raises(ValueError, match="a/kernel: all effects: no call was seen"):
        hw.assert_active(*model)


def test_an_effect_that_cannot_act_here_is_an_error():
    # A constant scale of one in front of nothing but noise changes nothing.
    idle = hw.IOParameters(out_noise=0.1, noise_management="constant")
    with pytest.raises(ValueError, match="a/kernel: noise_management: .*the same"):
        hw.assert_active(*linen(hw.Hardware(forward=idle)))


def test_the_layers_of_a_stack_are_measured_each():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(6)(x), None

    stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
    )()
    noise = dataclasses.replace(
        ONLY["modifier"], forward=hw.IOParameters(out_noise=0.1)
    )
    analog = hw.analogize(stack, noise)
    variables = jax.jit(analog.init)(jax.random.key(0), X, None)
    seen = []
    take = bench.read

    def counted(call):
        readings = take(call)
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), call.w)
        return readings

    bench.read = counted
    try:
        found = hw.assert_active(analog, variables, X, None)
    finally:
        bench.read = take
    assert len(seen) == 3 * 8
    assert {row[1] for row in found.rows} == {"modifier", "out_noise"}


LEARNED = hw.Hardware(
    modifier=hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, per_vector=True
    ),
    clip=hw.WeightClipParameter(type="learnable_per_channel"),
    drift=hw.SimpleDriftParameter(nu=0.1),
)


@pytest.mark.parametrize("per", ["per_vector", "per_batch_sample"])
def test_draws_per_input_learned_bounds_and_drift_are_measured(per):
    modifier = dataclasses.replace(LEARNED.modifier, per_vector=False)
    modifier = dataclasses.replace(modifier, **{per: True})
    chip = dataclasses.replace(LEARNED, modifier=modifier)
    found = hw.assert_active(*linen(chip))
    assert {"modifier", "clip", "drift"} <= {row[1] for row in found.rows}


def test_a_learned_bound_that_clips_nothing_is_told(retraced):
    retraced.setattr(weight_side, "clipped", lambda weight, kernel, *_: kernel)
    with pytest.raises(ValueError, match="a/kernel: clip: weights beyond the bound"):
        hw.assert_active(*linen(LEARNED))


def test_a_drift_without_effect_is_told(monkeypatch):
    def idle(self, state, w, dt_s, key=None, *, scale=1.0):
        return w, state

    monkeypatch.setattr(hw.SimpleDriftParameter, "step", idle)
    with pytest.raises(ValueError, match="a/kernel: drift: weights stay as they are"):
        hw.assert_active(*linen(LEARNED))


@pytest.mark.parametrize(
    "io",
    [
        pytest.param({"inp_bits": 8}, marks=pytest.mark.nightly),
        {"inp_bits": 8, "out_bits": 8, "out_bound": 10.0},
        pytest.param(
            {"inp_bits": 8, "out_bits": 8, "out_bound": 0.05}, marks=pytest.mark.nightly
        ),
    ],
)
def test_a_range_at_the_bound_of_a_converter_is_not_idle(io):
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=1.0),
        forward=hw.IOParameters(**io),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    rows = {row[1] for row in hw.assert_active(*linen(chip)).rows}
    assert {"DAC", "input_range", "input_range clips"} <= rows


def test_a_range_that_only_the_dac_would_clip_for_is_an_error(retraced):
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=1.0),
        forward=hw.IOParameters(inp_bits=8),
    )
    retraced.setattr(range_stage, "clip_to_range", lambda x, *_: x)
    with pytest.raises(ValueError, match="a/kernel: input_range: .*the same"):
        hw.assert_active(*linen(chip))


FROZEN = {
    "stuck": ("hwtrain.devices.stuck.draw_stuck", "share"),
    "stuck elsewhere": ("hwtrain.chips._tile_reads.with_stuck", "ends"),
    "drift_compensation": (
        "hwtrain.devices.drift_compensation.GlobalDriftCompensation.factor",
        "gain",
    ),
}
OFF = {
    "share": lambda key, shape, **_: jnp.zeros(shape, "uint8"),
    "ends": lambda g, stuck, **_: g,
    "gain": lambda self, baseline, y: jnp.ones_like(baseline),
}


@pytest.mark.sampled
@pytest.mark.parametrize("model", [linen, of_nnx])
@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_in_a_chip_is_found_and_missed_when_off(
    model, name, monkeypatch
):
    effect = name.split()[0]
    analog, variables, x = model(ONLY[effect])
    args = () if variables is None else (variables, x)
    plan = hw.plan(analog, *args)
    params = hw._flax.functional.as_function(analog, "train", variables)[1]

    def findings():
        jax.clear_caches()
        found = exported.deployed_effects(plan, params["params"])
        return {name: (wrong, amount) for _, name, wrong, amount in found}

    assert findings()[effect][0] is None
    target, change = FROZEN[name]
    monkeypatch.setattr(target, OFF[change])
    assert findings()[effect][0]
    jax.clear_caches()


def _without_noise(self, key, g_target):
    programmed = _PROGRAM(self, key, g_target)
    return dataclasses.replace(programmed, g_prog=g_target)


_PROGRAM = hw.PCMLikeNoiseModel.program
_DEVIATED = crossbars._chip_kernel
_CHIP_KERNEL = "hwtrain.checkpoint._crossbars._chip_kernel"
_BESIDE = {
    "neither": (None, None, set()),
    "mismatch": (_CHIP_KERNEL, lambda w, kernel, s, key, out: out, {"mismatch"}),
    "half of the mismatch": (
        _CHIP_KERNEL,
        lambda *args: (_DEVIATED(*args) + args[-1]) / 2,
        {"mismatch"},
    ),
    "mismatch of programmed chips": (
        "hwtrain.chips._programming.deviated",
        lambda weight, kernel, scale, key, out: out,
        {"mismatch"},
    ),
    "noise model": (
        "hwtrain.PCMLikeNoiseModel.program",
        _without_noise,
        {"noise_model", "programming noise"},
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("off", _BESIDE)
def test_mismatch_and_noise_model_are_each_measured_by_itself(off, monkeypatch):
    target, change, wrong = _BESIDE[off]
    chip = dataclasses.replace(
        ONLY["mismatch"],
        converter=CHIP.converter,
        noise_model=hw.PCMLikeNoiseModel(),
    )
    analog = hw.analogize(nn.Dense(40), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    if target:
        monkeypatch.setattr(target, change)
    jax.clear_caches()
    findings = list(exported.deployed_effects(plan, variables["params"]))
    jax.clear_caches()
    assert {effect for _, effect, why, _ in findings if why} == wrong
    amounts = {effect: amount for _, effect, _, amount in findings}
    if not wrong:
        assert amounts["mismatch"].endswith(" x the configured deviation")
        assert amounts["noise_model"].startswith("changes weights by")


def test_mismatch_beside_stuck_devices_is_measured_alone():
    chip = dataclasses.replace(
        ONLY["mismatch"],
        converter=CHIP.converter,
        stuck=hw.devices.stuck.StuckParameter(at_g_min=0.3),
    )
    analog = hw.analogize(nn.Dense(40), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    found = list(
        exported.deployed_effects(hw.plan(analog, variables, X), variables["params"])
    )
    assert [wrong for _, _, wrong, _ in found] == [None, None, None]
    (amount,) = (amount for _, effect, _, amount in found if effect == "mismatch")
    assert abs(float(amount.split()[0]) - 1) < 0.25


class LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (2,), name="a")(x)


class NnxConv(nnx.Module):
    def __init__(self):
        self.a = nnx.Conv(6, 2, (2,), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.a(x)


def convolution(framework):
    chip = hw.Hardware(forward=hw.IOParameters(inp_bits=4, out_noise=0.1))
    x = X[None]
    if framework == "nnx":
        return hw.analogize(NnxConv(), chip, rngs=nnx.Rngs(mismatch=0)), None, x
    analog = hw.analogize(LinenConv(), chip)
    return analog, jax.jit(analog.init)(jax.random.key(0), x), x


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_convolution_that_nobody_watches_is_measured_too(framework, monkeypatch):
    analog, variables, x = convolution(framework)
    plan = hw.plan(analog, *(() if variables is None else (variables, x)))

    def wrong():
        jax.clear_caches()
        function, tree = functional.as_function(analog, "train", variables)
        with watching(function, {}) as watched:
            steps = watched(tree, map(jax.random.key, range(8)), x)
        found = unwatched.unwatched_effects(analog, plan, steps, variables, x)
        return {effect: bool(wrong) for _, effect, wrong, _ in found}

    assert wrong() == {"convolutions": False, "noise of convolutions": False}
    whole = "hwtrain.periphery._whole_convolution"
    with monkeypatch.context() as off:
        off.setattr(f"{whole}.Context", lambda **k: Context(**{**k, "keys": None}))
        assert wrong() == {"convolutions": False, "noise of convolutions": True}
    monkeypatch.setattr(f"{whole}.Drive.__call__", lambda self, x, r: jnp.round(x / r))
    assert wrong()["convolutions"]
    jax.clear_caches()


@pytest.mark.parametrize(
    "name",
    [
        "standard_hwa_training",
        pytest.param("aihwkit_default", marks=pytest.mark.nightly),
    ],
)
def test_every_effect_of_a_training_preset_is_on(name):
    x = jax.random.normal(jax.random.key(0), (8, 32))
    analog = hw.analogize(nn.Dense(16), getattr(hw.presets, name)())
    hw.assert_active(analog, jax.jit(analog.init)(jax.random.key(0), x), x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_noise_of_narrow_outputs_is_measured_without_their_rounding(dtype):
    noise = {"inp_noise": 0.02, "out_noise": 0.03}
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(),
        forward=hw.IOParameters(
            w_noise=0.02, w_noise_type="additive_constant", **noise
        ),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    analog = hw.analogize(nn.Dense(32, dtype=dtype), chip)
    x = jnp.ones((2, 64))
    variables = analog.init(jax.random.key(1), x)
    found = str(hw.assert_active(analog, variables, x))
    for effect in (*noise, "w_noise"):
        strength = re.search(rf"{effect}: ([0-9.]+) x the configured", found)
        assert strength is not None and 0.9 < float(strength[1]) < 1.1, effect
