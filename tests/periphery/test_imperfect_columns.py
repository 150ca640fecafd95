"""ADC thresholds, gains and offsets of columns, nonlinear devices: NumPy, proofs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import test_util

import hwtrain as hw
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.adc_thresholds import AdcThresholds, straightened
from hwtrain.periphery.column_errors import ColumnErrors
from hwtrain.periphery.device_nonlinearity import DeviceNonlinearity, sinh_law
from hwtrain.periphery.mvm import analog_mvm
from hwtrain.periphery.wire_resistance import WireResistance


def multiply(x, w, *stages, **options):
    sizes = {"row_sizes": (len(w),), "column_sizes": (w.shape[1],)}
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    return np.asarray(analog_mvm(x, w, stages, **{**sizes, **options}))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bound", [0.5, 12.0])
def test_codes_are_those_of_the_thresholds(bits, bound):
    """By searching the sorted thresholds, one by one."""
    rng = np.random.default_rng(bits)
    count = 2**bits - 2
    dnl = np.clip(rng.normal(size=count) / 3, -0.9, None)
    stages = (
        Adc(bound=bound, res=1 / count),
        AdcThresholds(bound=bound, dnl_lsb=tuple(dnl)),
    )
    y = rng.uniform(-1.3 * bound, 1.3 * bound, (5000, 1))
    found = multiply(y, np.ones((1, 1)), *stages)
    step = 2 * bound / count
    thresholds = -bound + (np.arange(count) + 0.5 + np.cumsum(dnl)) * step
    codes = (thresholds[None] < y).sum(axis=1)
    near = np.abs(thresholds[None] - y).min(axis=1) < 1e-5 * bound
    expected = -bound + codes * step
    np.testing.assert_allclose(found[~near, 0], expected[~near], atol=1e-5 * bound)
    assert near.mean() < 0.02
    even = multiply(y, np.ones((1, 1)), stages[0])
    assert np.mean(np.abs(even - found) > step / 2) > 0.05


def test_inl_is_the_sum_of_dnl():
    dnl = (0.2, -0.4, 0.1, 0.0)
    inl = tuple(np.cumsum(dnl).tolist())
    y = jnp.linspace(-1, 1, 101)
    np.testing.assert_allclose(
        straightened(y, AdcThresholds(bound=1.0, dnl_lsb=dnl).inl, 1.0),
        straightened(y, AdcThresholds(bound=1.0, inl_lsb=inl).inl, 1.0),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "fields, said",
    [
        ({}, "expected one table"),
        ({"inl_lsb": (0.1,), "dnl_lsb": (0.1,)}, "expected one table"),
        ({"inl_lsb": (0.0, 0.0)}, "does nothing"),
        ({"dnl_lsb": (0.0, -1.0)}, "wrong order"),
        ({"inl_lsb": (2.0, 0.5)}, "thresholds 0 and 1"),
    ],
)
def test_tables_that_no_adc_has_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        AdcThresholds(bound=1.0, **fields)


def test_gains_and_offsets_are_normal_and_frozen():
    columns, gain, offset = 4000, 0.1, 0.3
    stage = ColumnErrors(gain_std=gain, offset_std=offset)
    x, w = np.array([[0.0], [1.0], [2.0]]), np.ones((1, columns))
    chips = [multiply(x, w, stage, chip_key=jax.random.key(k)) for k in (0, 1)]
    again = multiply(x, w, stage, chip_key=jax.random.key(0))
    np.testing.assert_array_equal(chips[0], again)
    # A straight line through three points of each column.
    np.testing.assert_allclose(
        chips[0][2] - chips[0][1], chips[0][1] - chips[0][0], atol=1e-5
    )
    offsets = np.stack([y[0] for y in chips])
    gains = np.stack([y[1] - y[0] for y in chips]) - 1
    for numbers, std in ((offsets, offset), (gains, gain)):
        assert abs(np.std(numbers) / std - 1) < 5 / np.sqrt(4 * columns)
        assert abs(np.mean(numbers)) < 5 * std / np.sqrt(2 * columns)
        assert abs(np.corrcoef(numbers)[0, 1]) < 5 / np.sqrt(columns)
    assert abs(np.corrcoef(offsets[0], gains[0])[0, 1]) < 5 / np.sqrt(columns)
    np.testing.assert_allclose(multiply(x, w, stage), x @ w)


def test_the_current_of_a_device_is_a_sinh_of_its_voltage():
    x = np.linspace(-1, 1, 9)[:, None]
    found = multiply(x, np.full((1, 1), 0.5), DeviceNonlinearity(kappa=1.5))
    expected = 0.5 * np.sinh(1.5 * x) / np.sinh(1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    almost_ohm = multiply(x, np.full((1, 1), 0.5), DeviceNonlinearity(kappa=1e-3))
    np.testing.assert_allclose(almost_ohm, 0.5 * x, rtol=1e-5, atol=1e-7)
    with jax.enable_x64(True):
        test_util.check_grads(lambda x: sinh_law(x, 2.0), (jnp.linspace(-1, 1, 5),), 1)


STAGES = {
    "thresholds": (
        Adc(bound=1.0, res=1 / 14),
        AdcThresholds(bound=1.0, dnl_lsb=(0.4, -0.7) * 7),
    ),
    "gain": (ColumnErrors(gain_std=0.1),),
    "offset": (ColumnErrors(offset_std=0.1),),
    "both": (ColumnErrors(gain_std=0.1, offset_std=0.1),),
    "device": (DeviceNonlinearity(kappa=2.0),),
}
LAYERS = {
    "dense": (nn.Dense(16), (4, 12)),
    "convolution": (nn.Conv(8, (3,), feature_group_count=2), (2, 6, 4)),
}


def _own(stages):
    """The stages that IOParameters has no field for, and the fields of the others."""
    own = tuple(stage for stage in stages if not isinstance(stage, Adc))
    fields = {"out_bits": 4, "out_bound": 1.0} if len(own) < len(stages) else {}
    return hw.Hardware(forward=hw.IOParameters(stages=own, **fields))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", STAGES)
def test_each_is_on_and_proved(name, layer, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, _own(STAGES[name]))
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    row = STAGES[name][-1].describe().partition(",")[0]
    assert row in str(hw.inspect(analog, variables, x))
    monkeypatch.setattr(
        type(STAGES[name][-1]), "around", lambda self, inner, x, ctx: inner(x)
    )
    jax.clear_caches()
    with pytest.raises(ValueError, match="kernel"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


@pytest.mark.parametrize("name", STAGES)
def test_each_is_on_in_nnx(name):
    x = jax.random.normal(jax.random.key(0), (4, 12))
    outputs = []
    for stages in (STAGES[name], STAGES[name][:-1]):
        model = nnx.Linear(12, 16, rngs=nnx.Rngs(0))
        analog = hw.analogize(model, _own(stages), rngs=nnx.Rngs(mismatch=1))
        outputs.append(analog(x))
    assert jnp.max(jnp.abs(outputs[0] - outputs[1])) > 1e-3


def test_columns_without_errors_are_refused():
    with pytest.raises(ValueError, match="do nothing"):
        ColumnErrors()


CONSTANTS = {
    "gain_std": (ColumnErrors(gain_std=0.1, offset_std=0.1), "gain_std"),
    "offset_std": (ColumnErrors(gain_std=0.1, offset_std=0.1), "offset_std"),
    "kappa": (DeviceNonlinearity(kappa=1.0), "kappa"),
    "wires": (WireResistance(r_wire_ohm=20.0), "r_wire_ohm"),
    "sinks": (WireResistance(r_wire_ohm=20.0, r_sink_ohm=9.0), "r_sink_ohm"),
    "devices": (WireResistance(r_wire_ohm=20.0), "g_max_us"),
    "circuit": (WireResistance(r_wire_ohm=20.0, solved=True), "r_wire_ohm"),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_gradient_with_respect_to_a_constant_is_that_of_differences(name):
    stage, field = CONSTANTS[name]
    analog = hw.analogize(
        nn.Dense(5), hw.Hardware(forward=hw.IOParameters(stages=(stage,)))
    )
    x = jax.random.normal(jax.random.key(0), (4, 10))
    variables = analog.init(jax.random.key(1), x)

    @jax.jit
    def loss(value):
        varied = hw.with_constants(analog, {f"forward.stages.0.{field}": value})
        y = varied.apply(variables, x, rngs={"mismatch": jax.random.key(2)})
        return 100 * jnp.mean(y**3)

    at = getattr(stage, field)
    step = 0.05 * at
    by_differences = (loss(at + step) - loss(at - step)) / (2 * step)
    assert abs(by_differences) > 1e-4
    np.testing.assert_allclose(jax.grad(loss)(at), by_differences, rtol=0.03)
    # It was configured with the number that it has in the loss without a change.
    y = analog.apply(variables, x, rngs={"mismatch": jax.random.key(2)})
    np.testing.assert_allclose(loss(at), 100 * jnp.mean(y**3), rtol=1e-4)
