"""Constants of hardware as traced values, in both frameworks and on chips."""

import dataclasses
import gc
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts.registry import built_in
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.management import Management
from hwtrain.weights import CorrelatedMismatch

X = jax.random.normal(jax.random.key(1), (5, 8))
IMAGE = jax.random.normal(jax.random.key(2), (2, 6, 6, 4))
KEY = jax.random.key(3)
WEIGHTS = 3 * jax.random.normal(jax.random.key(4), (5, 3))
Modifier = hw.WeightModifierParameter
IO = hw.IOParameters


def read(**fields):
    """Returns hardware with a periphery, and weights that are scaled to it."""
    scaled = hw.MappingParameter(weight_scaling_omega=1.0, max_input_size=5)
    return hw.Hardware(forward=IO(**fields), mapping=scaled)


def drawn(**fields):
    return hw.Hardware(modifier=Modifier(**fields))


def programmed(model, converter=None, **parts):
    converter = converter or hw.SinglePairConductanceConverter(g_max=model.g_max)
    return hw.Hardware(noise_model=model, converter=converter, **parts)


def converted(converter, **parts):
    stuck = hw.StuckParameter(at_g_min=0.1, at_g_max=0.2)
    parts = {"stuck": stuck} | parts
    return hw.Hardware(converter=converter, **parts)


DISTORTED = {"out_bound": 3.0, "out_nonlinearity": 0.5, "r_series": 0.1}
WORST = {"out_bound": 2.0, "bound_management": "iterative_worst_case"}
PCM = {"type": "pcm_noise", "std_dev": 1.0, "pcm_zero_thres": 8.0}
PCM |= {"pcm_t_inference": 100.0}
CMO = hw.ReRamCMONoiseModel()
SINGLE = hw.SingleDeviceConductanceConverter(g_max=CMO.g_max, g_min=CMO.g_min)
PAIRS = {"f_lst": (1.0, 3.0), "g_min": 1.0}
CURVES = {"g_lst": (0.0, 10.0, 25.0), "nu_std_lst": (0.03, 0.02, 0.01)}
CURVES |= {"nu_mean_lst": (0.1, 0.06, 0.05)}
MEASURED = hw.MeasuredNoiseModel(
    **CURVES, sigma_lst=(0.2, 1.0, 0.8), read_level_lst=(0.1, 0.02, 0.01), g_max=25.0
)
CUSTOM = hw.CustomPairConductanceConverter(
    f_lst=(1.0,), g_lst=((0.0, 0.0, 25.0), (25.0, 0.0, 0.0)), g_max=25.0
)

IN_CALLS = {
    "mapping.weight_scaling_omega": (read(out_bound=0.6, out_bits=6), 0.7),
    "forward.inp_bound": (read(inp_bound=0.8, inp_bits=5), 0.6),
    "forward.inp_res": (read(inp_res=1 / 16), 1 / 9),
    "forward.inp_noise": (read(inp_noise=0.1), 0.3),
    "forward.inp_asymmetry": (read(inp_asymmetry=0.1), 0.3),
    "forward.out_bound": (read(out_bound=1.0, out_bits=5), 0.4),
    "forward.out_res": (read(out_bound=2.0, out_res=32.0), 17.0),
    "forward.out_noise": (read(out_noise=0.1), 0.3),
    "forward.out_noise_std": (read(out_noise=0.1, out_noise_std=0.2), 0.7),
    "forward.out_asymmetry": (read(out_asymmetry=0.1), 0.3),
    "forward.out_scale": (read(out_scale=2.0), 3.0),
    "forward.nm_thres": (
        read(inp_bits=6, noise_management="abs_max", nm_thres=2.0),
        1.0,
    ),
    "forward.nm_assumed_wmax": (
        read(out_bound=0.5, inp_bits=5, noise_management="abs_max_np_sum"),
        0.3,
    ),
    "forward.w_noise": (read(w_noise=0.1, w_noise_type="pcm_read"), 0.3),
    "forward.ir_drop": (read(ir_drop=1.0, ir_drop_g_ratio=100.0), 2.0),
    "forward.ir_drop_g_ratio": (read(ir_drop=1.0, ir_drop_g_ratio=100.0), 50.0),
    "forward.out_nonlinearity": (read(**DISTORTED), 1.5),
    "forward.out_nonlinearity_std": (read(**DISTORTED, out_nonlinearity_std=0.2), 0.7),
    "forward.slope_calibration": (read(**DISTORTED, slope_calibration=0.5), 0.2),
    "forward.r_series": (read(**DISTORTED), 0.3),
    "forward.v_offset_std": (read(v_offset_std=0.1), 0.4),
    "forward.v_offset_w_min": (read(v_offset_std=0.1, v_offset_w_min=0.0), -0.7),
    "forward.w_read_asymmetry_dtod": (
        read(mv_type="pos_neg_separate", w_read_asymmetry_dtod=0.1),
        0.3,
    ),
    "modifier.std_dev": (drawn(type="add_normal", std_dev=0.1), 0.3),
    "modifier.assumed_wmax": (
        drawn(
            type="add_normal", std_dev=0.1, rel_to_actual_wmax=False, assumed_wmax=0.5
        ),
        0.8,
    ),
    "modifier.res": (
        drawn(type="discretize_add_normal", std_dev=0.1, res=16.0, pdrop=0.1),
        9.0,
    ),
    "modifier.dorefa_clip": (drawn(type="dorefa", res=0.1), 0.45),
    "modifier.pdrop": (drawn(type="drop_connect", pdrop=0.2), 0.5),
    "modifier.coeffs": (
        drawn(type="poly", std_dev=1.0, coeffs=(0.1, 0.2)),
        (0.2, 0.1),
    ),
    "modifier.g_max": (drawn(type="prog_noise", std_dev=1.0), 15.0),
    "modifier.pcm_zero_thres": (drawn(**PCM), 20.0),
    "modifier.pcm_t_inference": (drawn(**PCM), 1e4),
    "modifier.pcm_t0": (drawn(**PCM), 60.0),
    "modifier.pcm_prob_at_reset": (drawn(**PCM, pcm_prob_at_reset=0.1), 0.3),
    "modifier.pcm_prob_at_gmax": (drawn(**PCM, pcm_prob_at_gmax=0.1), 0.3),
    "modifier.pcm_prob_at_random": (drawn(**PCM, pcm_prob_at_random=0.1), 0.3),
}
"""By path of a number that a model reads: hardware with it, and another value."""

ON_CHIPS = {
    ("MismatchParameter", "std_dev"): (
        hw.Hardware(mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1)),
        {"mismatch.std_dev": 0.3},
    ),
    ("StuckParameter", "at_g_min"): (
        converted(hw.SinglePairConductanceConverter(g_min=1.0)),
        {"stuck.at_g_min": 0.3},
    ),
    ("StuckParameter", "at_g_max"): (
        converted(hw.SinglePairConductanceConverter(g_min=1.0)),
        {"stuck.at_g_max": 0.4},
    ),
}
"""By class and field: hardware with it, and other values by path."""

REFUSED = {
    "WeightClipParameter": ("sigma", "fixed_value"),
    "WeightRemapParameter": ("remapped_wmax", "max_scale_range", "max_scale_ref"),
    "SimpleDriftParameter": ("nu", "t_0", "reset_tol", "dt_s"),
    "DriftParameter": (
        *("nu", "t_0", "reset_tol", "dt_s", "nu_dtod", "nu_std", "wg_ratio"),
        *("g_offset", "w_offset", "nu_k", "log_g0", "w_noise_std"),
    ),
    "InputRangeParameter": (
        *("init_value", "init_std_alpha", "decay", "input_min_percentage"),
        *("output_min_percentage", "gradient_scale", "act_range_momentum"),
    ),
    "IOParameters": ("nm_decay", "max_bm_factor", "max_bm_res"),
    "CustomPairConductanceConverter": ("f_lst", "g_lst", "g_max", "g_min"),
    "MeasuredNoiseModel": ("t_read",),
    "ReRamCMONoiseModel": ("acceptance_range",),
    "HermesNoiseModel": ("drift_mean_start", "drift_std_start", "read_start"),
    "FlickerNoiseModel": ("f_min_hz", "f_max_hz"),
    "WriteVerifyNoiseModel": (
        *("pulse_energy_fj", "pulse_time_ns"),
        *("verify_energy_fj", "verify_time_ns"),
    ),
}
"""The numbers that stay static, by class."""


WRITTEN = hw.WriteVerifyNoiseModel(
    noise_model=hw.PCMLikeNoiseModel(prog_noise_scale=0.0),
    g_low=0.2,
    set_step_us=4.0,
    cycle_std=0.3,
    device_std=0.2,
    verify_sigma_us=0.2,
)
_SHARED = CorrelatedMismatch(
    std_dev=0.1, of_tile=0.1, of_row=0.2, of_column=0.3, length=2.0
)
for _name in ("std_dev", "of_tile", "of_row", "of_column", "length"):
    ON_CHIPS["CorrelatedMismatch", _name] = (
        hw.Hardware(mismatch=_SHARED),
        {f"mismatch.{_name}": 0.25 if _name != "length" else 3.0},
    )
for _converter in (
    hw.SinglePairConductanceConverter(g_min=1.0),
    SINGLE,
    hw.NPairConductanceConverter(**PAIRS),
    hw.DualPairConductanceConverter(**PAIRS),
    hw.BitSlicedConductanceConverter(bits=(2, 3), g_min=1.0),
):
    for _name, _value in (("g_max", 30.0), ("g_min", 0.5), ("f_lst", (1.5, 2.0))):
        if any(x.name == _name for x in dataclasses.fields(_converter)):
            ON_CHIPS[type(_converter).__name__, _name] = (
                converted(_converter),
                {f"converter.{_name}": _value},
            )
FLICKER = hw.FlickerNoiseModel(
    noise_model=hw.PCMLikeNoiseModel(), relative_std=0.1, f_min_hz=1e-5, f_max_hz=1e-3
)
CORRECTED = hw.GradientProgrammedNoiseModel(
    noise_model=hw.PCMLikeNoiseModel(), iterations=5, input_scale=0.9
)
for _model in (
    CORRECTED,
    hw.PCMLikeNoiseModel(prog_coeff_g_max_reference=20.0),
    hw.CustomDriftPCMLikeNoiseModel(**CURVES, prog_coeff_g_max_reference=20.0),
    hw.HermesNoiseModel(prog_coeff_g_max_reference=20.0),
    hw.StateIndependentNoiseModel(),
    MEASURED,
    hw.ReRamWan2022NoiseModel(),
    hw.ReRamMiloNoiseModel(),
    hw.SonosNoiseModel(),
    WRITTEN,
    CMO,
    hw.AtTemperature(
        noise_model=hw.PCMLikeNoiseModel(),
        temperature_k=350.0,
        conduction_ev=(0.2, -0.1),
        retention_ev=0.5,
    ),
    hw.RetentionFailures(
        noise_model=hw.PCMLikeNoiseModel(),
        law="weibull",
        scale_s=1e5,
        shape=0.7,
        g_fail=1.0,
    ),
    FLICKER,
    hw.ReadDisturb(
        noise_model=hw.PCMLikeNoiseModel(),
        read_voltage_v=0.3,
        read_time_s=1e-6,
        reads_per_s=1e3,
        write_cycles=1e4,
    ),
):
    for _field in dataclasses.fields(_model):
        _number = getattr(_model, _field.name)
        _other = jax.tree.map(lambda x: 1.1 * x if isinstance(x, float) else x, _number)
        _path = f"noise_model.{_field.name}"
        kept = REFUSED.get(type(_model).__name__, ())
        if _other == _number or _field.name in kept:
            continue
        _values = {_path: _other}
        if _field.name in ("g_max", "g_min"):
            _values[f"converter.{_field.name}"] = _other
        _hardware = programmed(_model, SINGLE if _model is CMO else None)
        if _model is CORRECTED:  # of linear tiles, the size of the inputs cancels
            _hardware = dataclasses.replace(_hardware, forward=IO(out_noise=0.1))
        ON_CHIPS[type(_model).__name__, _field.name] = (_hardware, _values)
# A tenth more would hardly move the logarithm of the times that a device is read.
ON_CHIPS["ReRamCMONoiseModel", "t_read"] = (
    programmed(CMO, SINGLE),
    {"noise_model.t_read": 1e-4},
)
# A tenth more would let no further device fail.
for _name, _value in (("scale_s", 1e3), ("shape", 7.0)):
    _hardware, _ = ON_CHIPS["RetentionFailures", _name]
    _values = {f"noise_model.{_name}": _value}
    ON_CHIPS["RetentionFailures", _name] = _hardware, _values


def _floats(kind):
    """Returns the fields of a class that may hold floating-point numbers."""

    def has_float(hint):
        if hint is float:
            return True
        return any(map(has_float, typing.get_args(hint)))

    hints = typing.get_type_hints(kind, include_extras=True)
    return {x.name for x in dataclasses.fields(kind) if has_float(hints[x.name])}


def _classes():
    """Returns the classes that a field of `Hardware` may have, but users'."""
    found = {
        hw.WeightRemapParameter,
        hw.InputRangeParameter,
        hw.IOParameters,
        hw.MappingParameter,
        hw.NoiseCurrentParameter,
        hw.StuckParameter,
    }
    for kind in ("noise_model", "converter", "drift_compensation", "mismatch", "clip"):
        found |= set(members(built_in(kind)))
    return found | {Modifier, hw.SimpleDriftParameter, hw.DriftParameter}


def members(union):
    return typing.get_args(union) or (union,)


def test_every_number_of_every_class_is_traced_or_refused():
    known = {
        ("WeightModifierParameter", x[9:]) for x in IN_CALLS if x[:9] == "modifier."
    }
    known |= {("IOParameters", x[8:]) for x in IN_CALLS if x[:8] == "forward."}
    known |= {("MappingParameter", "weight_scaling_omega"), *ON_CHIPS}
    known.add(("NoiseCurrentParameter", "density"))  # in tests/dynapse
    refused = {(kind, name) for kind, names in REFUSED.items() for name in names}
    assert not known & refused
    found = {(kind.__name__, name) for kind in _classes() for name in _floats(kind)}
    assert len(_classes()) >= 20
    assert found == known | refused


PARTS = {
    "WeightClipParameter": hw.WeightClipParameter(type="layer_gaussian"),
    "WeightRemapParameter": hw.WeightRemapParameter(type="layerwise_symmetric"),
    "SimpleDriftParameter": hw.SimpleDriftParameter(nu=0.1),
    "DriftParameter": hw.DriftParameter(nu=0.1),
    "InputRangeParameter": hw.InputRangeParameter(),
    "IOParameters": IO(**WORST, inp_bits=6),
    "CustomPairConductanceConverter": CUSTOM,
    "ReRamCMONoiseModel": CMO,
    "MeasuredNoiseModel": MEASURED,
    "HermesNoiseModel": hw.HermesNoiseModel(g_max=25.0),
    "WriteVerifyNoiseModel": WRITTEN,
    "FlickerNoiseModel": FLICKER,
}
SLOTS = {
    "WeightClipParameter": "clip",
    "WeightRemapParameter": "remap",
    "SimpleDriftParameter": "drift",
    "DriftParameter": "drift",
    "InputRangeParameter": "input_range",
    "IOParameters": "forward",
    "CustomPairConductanceConverter": "converter",
    "ReRamCMONoiseModel": "noise_model",
    "MeasuredNoiseModel": "noise_model",
    "HermesNoiseModel": "noise_model",
    "WriteVerifyNoiseModel": "noise_model",
    "FlickerNoiseModel": "noise_model",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_numbers_that_stay_static_are_refused_with_the_reason(kind):
    slot = SLOTS[kind]
    parts = {slot: PARTS[kind]}
    if slot == "noise_model":
        parts = (
            {"converter": SINGLE}
            if kind.startswith("ReRam")
            else {"converter": hw.SinglePairConductanceConverter(g_max=25.0)}
        )
        parts[slot] = PARTS[kind]
    plan = plan_of(hw.Hardware(**parts))
    for name in REFUSED[kind]:
        with pytest.raises(ValueError, match=r"with_constants: .*stays static"):
            hw.with_constants(plan, {f"{slot}.{name}": 1.0})


def set_statically(hardware, path, value):
    """Returns hardware whose configuration has another number."""
    first, name = path.split(".")
    value = tuple(value) if isinstance(value, tuple) else value
    part = dataclasses.replace(getattr(hardware, first), **{name: value})
    return dataclasses.replace(hardware, **{first: part})


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


VARIABLES = {"params": {"head": {"kernel": jax.random.normal(KEY, (8, 3)) / 3}}}
VARIABLES["params"]["head"]["bias"] = jnp.zeros(3)


def linen(hardware, module=None, name="head"):
    """Returns outputs of a model of some hardware, as a function of constants."""
    analog = hw.analogize(module or Linen(), hardware)
    x = X if module is None else IMAGE
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    if module is None:
        variables["params"]["head"].update(VARIABLES["params"]["head"])

    @jax.jit
    def run(constants):
        model = hw.with_constants(analog, constants) if constants else analog
        return model.apply(variables, x, rngs={"mismatch": KEY})

    return run


def of_nnx(hardware):
    analog = hw.analogize(Nnx(nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=KEY))
    analog.head.kernel[...] = VARIABLES["params"]["head"]["kernel"]
    graph, state = nnx.split(analog)

    @jax.jit
    def run(state, constants):
        model = nnx.merge(graph, state)
        model = hw.with_constants(model, constants) if constants else model
        return model(X)

    return lambda constants: run(state, constants)


def plan_of(hardware):
    analog = hw.analogize(Linen(), hardware)
    return hw.plan(analog, analog.init(jax.random.key(0), X), X)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("path", IN_CALLS)
@pytest.mark.parametrize("framework", [linen, of_nnx])
def test_a_traced_number_is_that_of_the_configuration(path, framework):
    hardware, value = IN_CALLS[path]
    run = framework(hardware)
    traced = run({path: jax.tree.map(jnp.asarray, jnp.asarray(value))})
    static = framework(set_statically(hardware, path, value))({})
    np.testing.assert_allclose(traced, static, rtol=2e-5, atol=2e-6)
    assert np.abs(traced - run({})).max() > 1e-3, "the number changes nothing"
    # The configuration's own number is that of the model without constants.
    own = getattr(getattr(hardware, path.split(".")[0]), path.split(".")[1])
    same = run({path: jnp.asarray(own)})
    np.testing.assert_allclose(same, run({}), rtol=2e-5, atol=2e-6)


def chip_of(plan, t_s=1e4):
    params = VARIABLES["params"]
    chip = hw.program_chip(params, plan, hw.chip_key(5))
    return chip.at(t_s, key=jax.random.key(7))["head"]["kernel"]


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case", ON_CHIPS, ids=".".join)
def test_a_traced_number_of_a_chip_is_that_of_the_configuration(case):
    hardware, values = ON_CHIPS[case]
    plan = plan_of(hardware)
    static = hardware
    parts = {}
    for path, value in values.items():
        part, name = path.split(".")
        parts.setdefault(part, {})[name] = value
    changed = {
        k: dataclasses.replace(getattr(static, k), **v) for k, v in parts.items()
    }
    expected = chip_of(plan_of(dataclasses.replace(static, **changed)))
    traced = jax.jit(lambda given: chip_of(hw.with_constants(plan, given)))
    found = traced({path: jnp.asarray(value) for path, value in values.items()})
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    # A number that the scale of the conductances takes out again changes rounding only.
    rescaled = {"g_max", "g_min", "f_lst", "prog_coeff_g_max_reference"}
    if case[1] not in rescaled:
        assert np.abs(found - chip_of(plan)).max() > 1e-5, "the number changes nothing"


NOISY = hw.Hardware(
    modifier=Modifier(type="add_normal", std_dev=0.1),
    forward=IO(out_noise=0.1),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0, max_input_size=5),
)
RANGED = dataclasses.replace(
    NOISY,
    forward=IO(inp_bits=4, inp_bound=0.7, out_noise=0.1, out_bound=2.0),
    input_range=hw.InputRangeParameter(),
)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x)
        return nn.Conv(3, (2, 2), strides=2, name="plain")(x)


@pytest.mark.parametrize(
    "path, value",
    [
        ("modifier.std_dev", 0.3),
        ("forward.inp_bound", 0.4),
        ("forward.out_noise", 0.4),
        ("forward.out_bound", 0.6),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.sampled(4)
def test_convolutions_of_groups_and_tiles(path, value, tiled):
    limit = 10 if tiled else None
    mapping = hw.MappingParameter(max_input_size=limit, weight_scaling_omega=1.0)
    hardware = dataclasses.replace(RANGED, mapping=mapping)
    traced = linen(hardware, CNN())({path: jnp.asarray(value)})
    static = linen(set_statically(hardware, path, value), CNN())({})
    np.testing.assert_allclose(traced, static, rtol=2e-5, atol=2e-6)
    assert np.abs(traced - linen(hardware, CNN())({})).max() > 1e-3


@pytest.mark.parametrize("framework", [linen, of_nnx])
def test_a_map_over_values_is_a_loop(framework):
    run = framework(NOISY)
    sigmas, noises = jnp.array([0.0, 0.1, 0.4]), jnp.array([0.3, 0.0, 0.1])

    def both(sigma, noise):
        return run({"modifier.std_dev": sigma, "forward.out_noise": noise})

    mapped = jax.vmap(both)(sigmas, noises)
    looped = jnp.stack([both(*pair) for pair in zip(sigmas, noises)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-6)
    assert np.abs(mapped[0] - mapped[1]).max() > 0.01


@pytest.mark.parametrize("kind", ["add_normal", "mult_normal", "poly", "prog_noise"])
@pytest.mark.parametrize("reparameterized", [False, True])
@pytest.mark.sampled(4)
def test_the_gradient_to_noise_of_weights_is_that_of_the_step(kind, reparameterized):
    # The output is linear in the noise, whose part is that of one minus none.
    hardware = drawn(type=kind, std_dev=0.5, reparameterized=reparameterized)
    run = linen(hardware)

    def loss(sigma):
        return jnp.sum(run({"modifier.std_dev": sigma}) * WEIGHTS)

    expected = (loss(0.65) - loss(0.55)) / 0.1
    np.testing.assert_allclose(jax.grad(loss)(0.6), expected, rtol=2e-3)
    assert abs(expected) > 0.1


@pytest.mark.parametrize("framework", [linen, of_nnx])
@pytest.mark.parametrize(
    "path, hardware, value",
    [
        ("forward.out_noise", NOISY, 0.1),
        ("forward.inp_noise", read(inp_noise=0.2), 0.1),
        ("forward.w_noise", IN_CALLS["forward.w_noise"][0], 0.1),
        ("forward.out_bound", read(out_bound=0.5), 0.4),
        ("forward.inp_bound", read(inp_bound=0.5), 0.4),
        ("forward.ir_drop", IN_CALLS["forward.ir_drop"][0], 0.7),
        ("forward.out_nonlinearity", read(**DISTORTED), 0.7),
        ("modifier.assumed_wmax", IN_CALLS["modifier.assumed_wmax"][0], 0.6),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.sampled(8)
def test_gradients_are_those_of_finite_differences(framework, path, hardware, value):
    run = framework(hardware)

    def loss(value):
        return jnp.sum(run({path: value}) * WEIGHTS)

    step = 2e-3
    expected = (loss(value + step) - loss(value - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(value), expected, rtol=5e-3)
    assert abs(expected) > 1e-2


def test_the_gradient_to_the_noise_of_outputs_is_its_closed_form():
    plain = hw.analogize(nn.Dense(3), read(out_noise=0.1))
    variables = plain.init(jax.random.key(0), X)
    largest = np.abs(variables["params"]["kernel"]).reshape(8, 3)
    scale = [largest[:4].max(), largest[4:].max()]
    assert plain.apply(variables, X, rngs={"mismatch": KEY}).shape == (5, 3)

    def square(noise, key):
        model = hw.with_constants(plain, {"forward.out_noise": noise})
        y = model.apply(variables, X, rngs={"mismatch": key})
        return jnp.mean((y - nn.Dense(3).apply(variables, X)) ** 2)

    keys = jax.random.split(KEY, 400)
    slope = jax.vmap(jax.grad(square), in_axes=(None, 0))(0.1, keys)
    # The variance of an output is that of its tiles: (s_1^2 + s_2^2) sigma^2.
    expected = 2 * 0.1 * (scale[0] ** 2 + scale[1] ** 2)
    error = float(np.std(slope) / np.sqrt(len(slope)))
    assert abs(float(np.mean(slope)) - expected) < 4 * error
    assert error < 0.05 * expected


def test_weights_keep_their_straight_through_gradient():
    analog = hw.analogize(nn.Dense(3), drawn(type="mult_normal", std_dev=0.5))
    variables = analog.init(jax.random.key(0), X)

    def slope(model):
        def loss(variables):
            y = model.apply(variables, X, rngs={"mismatch": KEY})
            return jnp.sum(y * X[:, :3])

        return jax.grad(loss)(variables)

    traced = slope(hw.with_constants(analog, {"modifier.std_dev": 0.5}))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        traced,
        slope(analog),
    )


@pytest.mark.parametrize("path", ["modifier.pdrop", "mapping.weight_scaling_omega"])
def test_a_number_without_a_slope_says_so(path):
    hardware, value = IN_CALLS[path]
    run = linen(hardware)
    with pytest.raises(ValueError, match=f"no gradient to '{path}'"):
        jax.grad(lambda x: run({path: x}).sum())(value)
    fixed = jax.grad(lambda x: run({path: jax.lax.stop_gradient(x)}).sum())(value)
    assert fixed == 0


def test_a_number_without_a_slope_leaves_others_theirs():
    hardware = drawn(type="add_normal", std_dev=0.1, pdrop=0.2)
    run = linen(hardware)

    def loss(sigma):
        return run({"modifier.std_dev": sigma, "modifier.pdrop": 0.3}).sum()

    assert abs(jax.grad(loss)(0.1)) > 0


def test_another_value_compiles_nothing():
    analog = hw.analogize(Linen(), NOISY)
    variables = analog.init(jax.random.key(0), X)

    @jax.jit
    def run(variables, noise):
        model = hw.with_constants(analog, {"forward.out_noise": noise})
        return model.apply(variables, X, rngs={"mismatch": KEY})

    outputs = [run(variables, jnp.float32(noise)) for noise in (0.1, 0.2, 0.3)]
    assert run._cache_size() == 1
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8, name="dense")(x), None


class Deep(nn.Module):
    """Layers under a scan, with remat and a jit inside."""

    @nn.compact
    def __call__(self, x):
        block = nn.scan(
            nn.remat(nn.jit(Block)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return block(name="blocks")(x, None)[0]


class NnxDeep(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0)
        def make(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.blocks = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x, block):
            return block(x)

        return run(x, self.blocks)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_layers_under_scan_remat_and_jit(framework):
    smooth = dataclasses.replace(
        RANGED, forward=IO(inp_bound=0.7, out_noise=0.1, out_bound=2.0)
    )
    variables = hw.analogize(Deep(), smooth).init(jax.random.key(0), X)
    stack = variables["params"]["blocks"]["dense"]

    def outputs(hardware, constants):
        if framework == "linen":
            model = hw.analogize(Deep(), hardware)
            model = hw.with_constants(model, constants) if constants else model
            return model.apply(variables, X, rngs={"mismatch": KEY})
        plain = NnxDeep(nnx.Rngs(0))
        plain.blocks.kernel[...] = stack["kernel"]
        model = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=KEY))
        model = hw.with_constants(model, constants) if constants else model
        return model(X)

    constants = {"forward.out_noise": 0.4, "forward.inp_bound": 0.5}

    @jax.jit
    def loss(constants):
        y = outputs(smooth, constants)
        return jnp.sum(y * X), y

    slopes, y = jax.grad(loss, has_aux=True)(constants)
    static = smooth
    for path, value in constants.items():
        static = set_statically(static, path, value)
    np.testing.assert_allclose(y, outputs(static, {}), rtol=1e-4, atol=1e-5)
    for path, value in constants.items():
        up, down = (loss({**constants, path: value + by})[0] for by in (2e-3, -2e-3))
        expected = (up - down) / 4e-3
        np.testing.assert_allclose(slopes[path], expected, rtol=0.02)
        assert abs(expected) > 0.1


class Normed(nn.Module):
    """A layer whose weights are made of stored ones."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3, name="dense"))(x)


class Raw(nn.Module):
    """A parameter that no layer holds."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (8, 3))
        return x @ w


LEVELS = Modifier(type="discretize", res=16.0, enable_during_test=True)
WAYS = {
    "redraw": (Linen(), drawn(type="add_normal", std_dev=0.1, redraw=True)),
    "per_batch_sample": (
        Linen(),
        drawn(type="mult_normal", std_dev=0.1, per_batch_sample=True),
    ),
    "per_vector": (
        Linen(),
        drawn(type="mult_normal", std_dev=0.1, per_vector=True),
    ),
    "derived": (Normed(), drawn(type="add_normal", std_dev=0.1)),
    "raw": (Raw(), drawn(type="add_normal", std_dev=0.1)),
    "last column": (
        Linen(),
        drawn(type="add_normal", std_dev=0.1, copy_last_column=True),
    ),
    "redrawn convolution": (
        CNN(),
        drawn(type="add_normal", std_dev=0.1, redraw=True),
    ),
    "learned clip": (
        Linen(),
        dataclasses.replace(
            drawn(type="add_normal", std_dev=0.1),
            clip=hw.WeightClipParameter(type="learnable_per_channel"),
        ),
    ),
    "stored scale": (
        Linen(),
        dataclasses.replace(
            drawn(type="add_normal", std_dev=0.1),
            clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.5),
        ),
    ),
}
"""Ways in which a layer gets the weights of a step."""


@pytest.mark.parametrize("way", WAYS)
def test_noise_of_weights_is_traced_however_they_are_drawn(way):
    module, hardware = WAYS[way]
    x = IMAGE if isinstance(module, CNN) else X

    def given(hardware):
        rule = hw.Rule(params="w", hardware=hardware)
        return hw.analogize(module, [rule] if way == "raw" else hardware)

    variables = given(hardware).init(jax.random.key(0), x)

    def loss(model):
        y = model.apply(variables, x, rngs={"mismatch": KEY})
        return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

    @jax.jit
    def traced(std_dev):
        return loss(hw.with_constants(given(hardware), {"modifier.std_dev": std_dev}))

    static = loss(given(set_statically(hardware, "modifier.std_dev", 0.3)))
    np.testing.assert_allclose(traced(0.3), static, rtol=1e-4, atol=1e-5)
    # Linear in the deviation.
    expected = (traced(0.4) - traced(0.2)) / 0.2
    np.testing.assert_allclose(jax.grad(traced)(0.3), expected, rtol=2e-3)
    assert abs(expected) > 0.1


PERIPHERIES = {
    "forward.inp_bound": IO(inp_bound=0.5, out_noise=0.1),
    "forward.inp_asymmetry": IO(inp_asymmetry=0.3, out_noise=0.1),
    "forward.out_bound": IO(out_bound=0.3),
    "forward.out_noise": IO(out_noise=0.3, out_bound=2.0),
}


@pytest.mark.parametrize("path", PERIPHERIES)
@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.sampled(4)
def test_gradients_through_a_convolution_as_a_whole(path, ranged):
    hardware = hw.Hardware(
        forward=PERIPHERIES[path],
        input_range=hw.InputRangeParameter(init_value=1.5) if ranged else None,
    )
    run = linen(hardware, CNN())
    value = getattr(hardware.forward, path[8:])

    def loss(value):
        y = run({path: value})
        return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

    step = 5e-4
    expected = (loss(value + step) - loss(value - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(value), expected, rtol=0.02)
    assert abs(expected) > 0.05


@pytest.mark.parametrize("noise", ["none", "abs_max"])
def test_gradients_under_bound_management(noise):
    hardware = read(
        noise_management=noise,
        nm_thres=0.5 if noise == "abs_max" else 0.0,
        bound_management="iterative",
        out_bound=0.5,
        out_noise=0.1,
    )
    run = linen(hardware)

    def loss(value):
        return jnp.sum(run({"forward.out_noise": value}) * WEIGHTS)

    expected = (loss(0.101) - loss(0.099)) / 2e-3
    np.testing.assert_allclose(jax.grad(loss)(0.1), expected, rtol=5e-3)
    assert abs(expected) > 1e-2
    if noise == "abs_max":  # the scales are constants to gradients

        def scaled(threshold):
            return jnp.sum(run({"forward.nm_thres": threshold}) * WEIGHTS)

        assert scaled(0.3) != scaled(0.5)
        assert jax.grad(scaled)(0.5) == 0


@hw.register("stage", "looks_first", inside="adc")
class LooksFirst(hw.Part):
    """Reads as a trial, without a gradient."""

    def around(self, inner, x, ctx):
        return inner(x) + inner.trial(x, 1).y


def test_a_trial_has_no_gradient_to_constants():
    once, twice = (
        linen(hw.Hardware(forward=IO(ir_drop=1.0, stages=stages)))
        for stages in ((), (LooksFirst(),))
    )
    slopes = [
        jax.grad(lambda x, run=run: run({"forward.ir_drop": x}).sum())(0.5)
        for run in (once, twice)
    ]
    assert slopes[0] == slopes[1] != 0


def test_the_levels_that_a_chip_is_programmed_to_are_traced():
    hardware = hw.Hardware(modifier=LEVELS)
    static = hw.Hardware(modifier=dataclasses.replace(LEVELS, res=5.0))
    traced = {"modifier.res": 5.0}
    params = VARIABLES["params"]
    chips = [
        hw.apply_mismatch(params, plan, hw.chip_key(0))["head"]["kernel"]
        for plan in (hw.with_constants(plan_of(hardware), traced), plan_of(static))
    ]
    np.testing.assert_allclose(*chips, rtol=1e-6)
    models = [
        hw.chip_mode(hw.with_constants(hw.analogize(Linen(), hardware), traced)),
        hw.chip_mode(hw.analogize(Linen(), static)),
    ]
    outputs = [model.apply(VARIABLES, X) for model in models]
    np.testing.assert_allclose(*outputs, rtol=1e-5)
    plain = hw.chip_mode(hw.analogize(Linen(), hardware)).apply(VARIABLES, X)
    assert np.abs(outputs[0] - plain).max() > 1e-2
    with pytest.raises(ValueError, match="not programmed through this modifier"):
        plan = plan_of(drawn(type="add_normal", std_dev=0.1))
        hw.with_constants(plan, {"modifier.std_dev": 0.2})


def test_a_compensation_reads_a_traced_periphery():
    parts = {"drift_compensation": hw.GlobalDriftCompensation()}
    model, converter = hw.PCMLikeNoiseModel(), hw.SinglePairConductanceConverter()
    parts |= {"noise_model": model, "converter": converter}
    hardware = hw.Hardware(forward=IO(out_bound=0.5, out_bits=8), **parts)
    static = dataclasses.replace(hardware, forward=IO(out_bound=0.2, out_bits=8))
    traced = hw.with_constants(plan_of(hardware), {"forward.out_bound": 0.2})
    found = chip_of(traced)
    np.testing.assert_allclose(found, chip_of(plan_of(static)), rtol=1e-5)
    assert np.abs(found - chip_of(plan_of(hardware))).max() > 1e-4


class Outer(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.inner(x)


def test_a_jit_around_the_model_keeps_values_apart():
    inner = hw.eval_mode(hw.analogize(nn.Dense(3), read(out_bound=5.0), name="inner"))
    jitted = nn.jit(Outer)
    variables = jitted(inner).init(jax.random.key(0), X)
    for bound in (0.1, 0.2, 0.3, 0.1):
        traced = hw.with_constants(inner, {"forward.out_bound": bound})
        y = jitted(traced).apply(variables, X)
        static = hw.analogize(nn.Dense(3), read(out_bound=bound), name="inner")
        expected = Outer(hw.eval_mode(static)).apply(variables, X)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        del traced, y
        gc.collect()  # the next class may get the place of this one


@pytest.mark.parametrize(
    "framework", [linen, pytest.param(of_nnx, marks=pytest.mark.nightly)]
)
def test_nothing_of_a_trace_is_left_behind(framework):
    run = framework(NOISY)
    with jax.checking_leaks():
        jax.jit(lambda x: run({"forward.out_noise": x}))(0.25)


def test_modes_clones_and_pickles_keep_their_constants():
    dense = nn.Dense(3, kernel_init=nn.initializers.ones)
    analog = hw.analogize(dense, read(out_bound=5.0, out_noise=0.1))
    variables = analog.init(jax.random.key(0), X)
    model = hw.with_constants(analog, {"forward.out_bound": 0.1})
    small = np.abs(hw.eval_mode(model).apply(variables, X)).max()
    assert small < np.abs(hw.eval_mode(analog).apply(variables, X)).max()
    for other in (model.clone(), pickle.loads(pickle.dumps(model))):
        assert np.abs(hw.eval_mode(other).apply(variables, X)).max() == small
    more = hw.with_constants(model, {"forward.out_noise": 0.0})
    twice = [
        more.apply(variables, X, rngs={"mismatch": jax.random.key(n)}) for n in (0, 1)
    ]
    np.testing.assert_array_equal(*twice)
    with pytest.raises(ValueError, match=r"'forward.out_bound' has a value already"):
        hw.with_constants(model, {"forward.out_bound": 0.2})


class Parent(nn.Module):
    child: nn.Module
    how: str = "plain"

    @nn.compact
    def __call__(self, x):
        if self.how == "another":
            hw.with_constants(self.child, {"forward.out_scale": 5.0})
            hw.eval_mode(self.child)
        if self.how != "mapped":
            return self.child(x)
        scaled = lambda q: hw.with_constants(self.child, {"forward.out_scale": q})(x)  # noqa: E731
        return jax.vmap(scaled)(jnp.array([2.0, 5.0])), self.child(x)


class InSetup(nn.Module):
    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x):
        return self.dense(x)


class Compact(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x)


@pytest.mark.parametrize("inner", [InSetup, Compact])
def test_another_child_of_a_call_leaves_the_child_as_it_is(inner):
    child = hw.analogize(inner(), hw.Hardware(forward=IO(out_scale=2.0)))
    variables = Parent(child).init(jax.random.key(0), X)
    plain = Parent(child).apply(variables, X)
    other = Parent(child, "another").apply(variables, X)
    np.testing.assert_array_equal(other, plain)
    mapped, after = Parent(child, "mapped").apply(variables, X)
    np.testing.assert_array_equal(after, plain)
    bias = variables["params"]["child"]["dense"]["bias"]
    expected = jnp.stack([plain, bias + (plain - bias) * 5.0 / 2.0])
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    assert Parent(child, "mapped").init(jax.random.key(0), X).keys() == {"params"}


def test_an_nnx_model_shares_what_it_holds_and_leaves_modes_alone():
    analog = hw.analogize(Nnx(nnx.Rngs(0)), NOISY, rngs=nnx.Rngs(mismatch=KEY))
    model = hw.with_constants(analog, {"forward.out_noise": 0.2})
    assert model.head.kernel is analog.head.kernel
    first, second = model(X), analog(X)
    assert analog.analog_stream.count[...] == 2, (
        "draws of one are no draws of the other"
    )
    assert np.abs(first - second).max() > 0
    hw.eval_mode(model)
    assert analog.hardware_mode == analog.head.hardware_mode == "train"
    assert not nnx.state(analog, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
    own, shared = (jax.tree.structure(nnx.state(x, nnx.Param)) for x in (model, analog))
    assert own == shared


class Two(nn.Module):
    def setup(self):
        self.first, self.second = nn.Dense(8), nn.Dense(3)

    def __call__(self, x):
        return self.second(self.encode(x))

    def encode(self, x):
        return self.first(x)


def test_a_pattern_reaches_the_layers_that_it_matches():
    quiet = hw.Hardware(forward=IO(out_bits=4, out_bound=9.0))
    noisy = hw.Hardware(forward=IO(out_noise=0.1))
    analog = hw.analogize(Two(), [hw.Rule("first", noisy), hw.Rule("second", quiet)])
    variables = analog.init(jax.random.key(0), X)

    def run(key, value, **kwargs):
        model = hw.with_constants(analog, {key: value})
        return model.apply(variables, X, rngs={"mismatch": KEY}, **kwargs)

    expected = run("forward.out_noise", 0.3)
    for key in ("first:forward.out_noise", "fir.*/kernel:forward.out_noise"):
        np.testing.assert_array_equal(run(key, 0.3), expected)
    with pytest.raises(ValueError, match=r"\(second/kernel\).*turns the effect off"):
        run("second:forward.out_noise", 0.3)
    with pytest.raises(ValueError, match="matches no analog weight"):
        run("third:forward.out_noise", 0.3)
    with pytest.raises(ValueError, match="forward.out_bound of .* is set by two keys"):
        hw.with_constants(
            analog, {"second:forward.out_bound": 1.0, "forward.out_bound": 2.0}
        ).apply(variables, X, rngs={"mismatch": KEY})
    # A method that does not reach the layer is no mistake.
    both = {"second:forward.out_bound": 0.1, "first:forward.out_noise": 0.0}
    encoded = hw.with_constants(analog, both).apply(
        variables, X, method="encode", rngs={"mismatch": KEY}
    )
    plain = hw.eval_mode(analog).apply(variables, X, method="encode")
    np.testing.assert_allclose(encoded, plain, rtol=1e-6)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("forward.out_bits", 8, "out_bits is 6, which is not a floating-point number"),
        (
            "forward.noise_management",
            1.0,
            "'none', which is not a floating-point number",
        ),
        ("forward.inp_bound", 1.0, "inp_bound is None, which is not a floating-point"),
        ("forward.nothing", 1.0, "IOParameters has no field 'nothing'"),
        ("forward", 1.0, "not a floating-point number"),
        ("periphery.out_noise", 1.0, "hardware has no part 'periphery'"),
        ("modifier.std_dev", 0.1, "this Hardware has no modifier"),
        ("forward.inp_noise", 0.1, "turns the effect off"),
        ("forward.out_scale", 2.0, "it is 1 in the configuration"),
        ("forward.ir_drop_g_ratio", 9.0, "does nothing without ir_drop"),
        ("forward.out_noise", jnp.ones(3), r"takes the shape \(\), .*got \(3,\)"),
        ("forward.out_noise", -0.1, "greater than or equal to 0, got -0.1"),
        ("forward.out_noise", float("nan"), "out_noise"),
        ("mismatch.std_dev", 0.1, "pass it to a plan"),
        ("forward.stages.none.sigma", 0.1, "no stage is called 'none'"),
    ],
)
def test_a_key_or_value_that_does_not_fit_is_refused(key, value, message):
    hardware = read(out_noise=0.1, out_bits=6, out_bound=2.0)
    analog = hw.analogize(Nnx(nnx.Rngs(0)), hardware)
    with pytest.raises(ValueError, match=f"with_constants: .*{message}"):
        hw.with_constants(analog, {key: value})


LIMITED = {"out_bound": 0.5, "inp_bound": 1.0}


@pytest.mark.parametrize("bound", ["iterative", "iterative_worst_case"])
@pytest.mark.parametrize(
    "levels", [{"inp_res": 1 / 62}, {"inp_res": 62.0}, {"inp_bits": 6}]
)
@pytest.mark.parametrize("name", ["inp_res", "inp_bound"])
def test_what_limits_the_halvings_of_inputs_stays_static(name, levels, bound):
    if name == "inp_res" and "inp_bits" in levels:
        return
    hardware = read(**LIMITED, **levels, bound_management=bound)
    of_chip = programmed(
        hw.PCMLikeNoiseModel(),
        forward=hardware.forward,
        drift_compensation=hw.GlobalDriftCompensation(readout="periphery"),
    )
    for run in (
        linen(hardware),
        lambda new: hw.with_constants(hw.analogize(Nnx(nnx.Rngs(0)), hardware), new),
        lambda new: hw.with_constants(plan_of(of_chip), new),
    ):
        with pytest.raises(ValueError, match=f"{name}.*max_bm_res.*stays static"):
            run({f"forward.{name}": 0.5})


@pytest.mark.parametrize(
    "fields",
    [
        {"inp_res": 1 / 62},
        {"inp_res": 1 / 62, "bound_management": "shift"},
        {"bound_management": "iterative"},
    ],
)
def test_a_dac_that_limits_no_halvings_is_traced(fields):
    """Compared with the configuration that has the number."""
    hardware = read(**LIMITED, **fields)
    for path in ("forward.inp_bound", "forward.inp_res"):
        if path.endswith("res") and "inp_res" not in fields:
            continue
        static = linen(set_statically(hardware, path, 0.25))({})
        traced = linen(hardware)({path: jnp.asarray(0.25)})
        np.testing.assert_allclose(traced, static, rtol=2e-5, atol=2e-6)


def test_the_limit_of_a_stage_of_management_stays_static():
    stages = (Management(iterative=True, bound=0.5, limit=8.0), Adc(bound=0.5))
    with pytest.raises(ValueError, match="limit.*stays static"):
        linen(read(stages=stages))({"forward.stages.0.limit": 2.0})


def test_what_is_neither_a_model_nor_a_plan_is_refused():
    for other in (nn.Dense(3), nnx.Linear(2, 2, rngs=nnx.Rngs(0)), NOISY):
        with pytest.raises(ValueError, match="with_constants takes|is not analog"):
            hw.with_constants(other, {"forward.out_noise": 0.1})


def test_both_ranges_of_conductances_are_given_together():
    plan = plan_of(programmed(hw.PCMLikeNoiseModel()))
    with pytest.raises(ValueError, match="are one number: give both"):
        hw.with_constants(plan, {"converter.g_max": 20.0})
    with pytest.raises(ValueError, match="pass it to a model"):
        hw.with_constants(plan_of(NOISY), {"forward.out_noise": 0.1})
    with pytest.raises(TypeError, match="so its configuration has no hash"):
        hash(hw.with_constants(plan, {"noise_model.t_0": 10.0}))


def test_gradients_to_constants_of_devices():
    plan = plan_of(
        programmed(
            hw.PCMLikeNoiseModel(),
            mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1),
        )
    )

    def surrogate(constants, number):
        """The mean squared error of one chip's outputs."""
        traced = hw.with_constants(plan, constants)
        params = VARIABLES["params"]
        chip = hw.program_chip(params, traced, hw.chip_key(number))
        kernel = chip.at(1e4, key=jax.random.key(number))["head"]["kernel"]
        return jnp.mean((X @ kernel - X @ params["head"]["kernel"]) ** 2)

    @jax.jit
    def mean(constants):
        return jnp.mean(jax.vmap(surrogate, (None, 0))(constants, jnp.arange(8)))

    constants = {
        "mismatch.std_dev": jnp.float32(0.1),
        "noise_model.prog_noise_scale": jnp.float32(1.0),
        "noise_model.t_0": jnp.float32(20.0),
        "noise_model.prog_coeff": jnp.array([0.26, 1.97, -1.17]),
    }
    slopes = jax.grad(mean)(constants)
    for name, value in constants.items():
        flat = jnp.ravel(value)
        for place in range(flat.size):
            step = 2e-3 * max(1.0, abs(float(flat[place])))
            moved = [
                mean({**constants, name: flat.at[place].add(by).reshape(value.shape)})
                for by in (step, -step)
            ]
            expected = (moved[0] - moved[1]) / (2 * step)
            found = jnp.ravel(slopes[name])[place]
            np.testing.assert_allclose(found, expected, rtol=0.02, atol=2e-6)
            assert abs(found) > 1e-7


def test_a_range_of_conductances_moves_noise_that_is_not_relative_to_it():
    # Noise of 0.2 µS is the less for the weights, the wider the range: w ~ 1 / g_max.
    plan = plan_of(programmed(hw.StateIndependentNoiseModel(drift_nu_mean=0.0)))

    def error(g_max):
        both = {f"{part}.g_max": g_max for part in ("converter", "noise_model")}
        traced = hw.with_constants(plan, both)
        params = VARIABLES["params"]
        kernel = hw.program_chip(params, traced, hw.chip_key(0)).at(0.0)
        weights = kernel["head"]["kernel"] - params["head"]["kernel"]
        return jnp.sqrt(jnp.mean(weights**2))

    value, slope = jax.value_and_grad(error)(25.0)
    np.testing.assert_allclose(slope, -value / 25.0, rtol=1e-3)


def test_a_chip_carries_its_constants_over_maps():
    plan = plan_of(programmed(hw.PCMLikeNoiseModel()))

    @jax.vmap
    def chips(scale):
        traced = hw.with_constants(plan, {"noise_model.read_noise_scale": scale})
        return hw.program_chip(VARIABLES["params"], traced, hw.chip_key(0))

    def read_at(chip, t_s):
        return chip.at(t_s, key=KEY)["head"]["kernel"]

    made = chips(jnp.array([0.0, 1.0]))
    later = jax.jit(jax.vmap(read_at, (0, None)))(made, 100.0)
    for number, scale in enumerate((0.0, 1.0)):
        model = hw.PCMLikeNoiseModel(read_noise_scale=scale)
        static = plan_of(programmed(model))
        chip = hw.program_chip(VARIABLES["params"], static, hw.chip_key(0))
        np.testing.assert_allclose(later[number], read_at(chip, 100.0), rtol=1e-5)


def test_a_model_is_what_it_was_once_another_has_constants():
    analog = hw.analogize(Linen(), RANGED)
    variables = analog.init(jax.random.key(0), X)

    def run(model):
        def call(variables, noise):
            given = model(noise)
            return given.apply(variables, X, rngs={"mismatch": KEY})

        return str(jax.make_jaxpr(call)(variables, 0.1))

    before = run(lambda noise: analog)
    traced = run(lambda noise: hw.with_constants(analog, {"forward.out_noise": noise}))
    assert run(lambda noise: analog) == before != traced


def test_what_measures_the_configuration_takes_no_constants():
    values = {"forward.out_noise": 0.3}
    analog = hw.analogize(nn.Dense(3), NOISY)
    variables = analog.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="pass the model without them"):
        hw.assert_active(hw.with_constants(analog, values), variables, X)
    model = hw.analogize(Nnx(nnx.Rngs(0)), NOISY, rngs=nnx.Rngs(mismatch=KEY))
    with pytest.raises(ValueError, match="others for 'forward.out_noise'"):
        hw.assert_active(hw.with_constants(model, values), None, X)


AGEING = ("AtTemperature", "RetentionFailures", "ReadDisturb", "WriteVerifyNoiseModel")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", [x for x in ON_CHIPS if x[0] in AGEING], ids=".".join)
def test_gradients_to_numbers_of_chips_are_those_of_finite_differences(case):
    hardware, _ = ON_CHIPS[case]
    model, name = hardware.noise_model, case[1]
    plan, own = plan_of(hardware), getattr(hardware.noise_model, case[1])
    weights = jax.random.normal(jax.random.key(3), (8, 3))

    def written(factor):
        value = jax.tree.map(lambda x: x * factor, own)
        traced = hw.with_constants(plan, {f"noise_model.{name}": jnp.asarray(value)})
        chip = hw.program_chip(VARIABLES["params"], traced, hw.chip_key(5))
        pulses = [x.pulses for x in chip.weights["head/kernel"].devices]
        return chip.at(1e4)["head"]["kernel"], pulses

    step = 1e-3
    (less, before), (more, after) = map(jax.jit(written), (1 - step, 1 + step))
    # A pulse more or less is a jump, and no slope.
    steady = np.ones((8, 3), bool)
    if before[0] is not None:
        steady = np.all([np.equal(a, b) for a, b in zip(before, after)], axis=0)
        assert steady.mean() > 0.5

    def loss(factor):
        return jnp.sum(written(factor)[0] * weights * steady)

    if name in model.without_slope:
        with pytest.raises(ValueError, match="no gradient"):
            jax.grad(loss)(1.0)
        return
    expected = np.sum(np.float64(more - less) * weights * steady) / (2 * step)
    found = float(jax.jit(jax.grad(loss))(1.0))
    # float32 leaves 1e-7 of the weights in a difference.
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=5e-4)
    assert abs(expected) > 2e-3, "the number changes nothing"
