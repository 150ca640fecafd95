"""Numbers of hardware as traced values: every one, in both frameworks and on chips."""

import dataclasses
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.hardware import chip as chip_module
from hwtrain.traceable import refusal

X = jax.random.normal(jax.random.key(1), (5, 8))
IMAGE = jax.random.normal(jax.random.key(2), (2, 6, 6, 4))
KEY = jax.random.key(3)
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
"""By path of a number that a model reads: hardware that has it on, and another value."""

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
"""By class and field: hardware that has it on, and other values by path."""

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
        *("output_min_percentage", "gradient_scale"),
    ),
    "IOParameters": ("nm_decay", "max_bm_factor", "max_bm_res"),
    "CustomPairConductanceConverter": ("f_lst", "g_lst", "g_max", "g_min"),
    "MeasuredNoiseModel": ("t_read",),
    "ReRamCMONoiseModel": ("acceptance_range",),
}
"""The numbers that stay static, by class."""


for _converter in (
    hw.SinglePairConductanceConverter(g_min=1.0),
    SINGLE,
    hw.NPairConductanceConverter(**PAIRS),
    hw.DualPairConductanceConverter(**PAIRS),
):
    for _name, _value in (("g_max", 30.0), ("g_min", 0.5), ("f_lst", (1.5, 2.0))):
        if hasattr(_converter, _name):
            ON_CHIPS[type(_converter).__name__, _name] = (
                converted(_converter),
                {f"converter.{_name}": _value},
            )
for _model in (
    hw.PCMLikeNoiseModel(prog_coeff_g_max_reference=20.0),
    hw.CustomDriftPCMLikeNoiseModel(**CURVES, prog_coeff_g_max_reference=20.0),
    hw.HermesNoiseModel(prog_coeff_g_max_reference=20.0),
    hw.StateIndependentNoiseModel(),
    MEASURED,
    hw.ReRamWan2022NoiseModel(),
    CMO,
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
        ON_CHIPS[type(_model).__name__, _field.name] = (_hardware, _values)


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
        hw.StuckParameter,
    }
    for kinds in chip_module._classes().values():
        found |= {x for x in kinds if dataclasses.is_dataclass(x)}
    bases = {hw.NoiseModel, hw.ConductanceConverter, hw.DriftCompensation, hw.Mismatch}
    return found - bases - {hw.WeightClip, hw.WeightModifier}


def test_every_number_of_every_class_is_traced_or_refused():
    known = {
        ("WeightModifierParameter", x[9:]) for x in IN_CALLS if x[:9] == "modifier."
    }
    known |= {("IOParameters", x[8:]) for x in IN_CALLS if x[:8] == "forward."}
    known |= {("MappingParameter", "weight_scaling_omega"), *ON_CHIPS}
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
