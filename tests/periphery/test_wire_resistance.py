"""The wires of tiles: the fitted drop against the circuit, tiles, layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.periphery import crossbar_currents
from hwtrain.periphery.mvm import analog_mvm
from hwtrain.periphery.wire_resistance import WireResistance, apparent_conductances


def pairs(w, g_max, g_min=0.0):
    """Returns the conductances of pairs in neighbouring columns, in siemens."""
    both = np.stack([np.maximum(w, 0), np.maximum(-w, 0)], axis=-1)
    return 1e-6 * (g_min + (g_max - g_min) * both.reshape(len(w), -1))


def weights_of(currents, g_max, g_min=0.0):
    """Returns the difference of each pair of columns, in units of the weights."""
    both = np.asarray(currents, np.float64).reshape(*currents.shape[:-1], -1, 2)
    return (both[..., 0] - both[..., 1]) * 1e6 / (g_max - g_min)


def drawn(kind, rng, shape):
    if kind == "uniform":
        return rng.uniform(-1, 1, shape)
    if kind == "heavy":
        return np.clip(rng.standard_t(3, shape) / 4, -1, 1)
    return np.sign(rng.normal(size=shape)) * (rng.uniform(size=shape) < 0.3)


@pytest.mark.optimised
@pytest.mark.parametrize("kind", ["uniform", "heavy", "ternary"])
@pytest.mark.parametrize("wire", [0.2, 1.0, 2.0])
def test_the_error_of_the_fit_is_what_is_stated(kind, wire):
    """On weights, sizes and resistances that it was not fitted to."""
    rng = np.random.default_rng(int(10 * wire))
    g = pairs(drawn(kind, rng, (96, 80)), 40.0).astype(np.float32)
    v = np.concatenate([rng.uniform(0, 1, (8, 96)), rng.normal(size=(8, 96))])
    v = v.astype(np.float32)
    row, column = np.arange(96), np.arange(160)
    a = g @ (wire * (np.minimum.outer(column, column) + 1))
    b = (wire * (96 - np.maximum.outer(row, row))) @ g
    loaded = np.mean(a + b)
    assert loaded < 1
    circuit = weights_of(crossbar_currents(g, v, r_wire_ohm=wire), 40.0)
    fitted = weights_of(v @ apparent_conductances(g, r_wire_ohm=wire), 40.0)
    for half in (slice(0, 8), slice(8, 16)):
        error = np.sqrt(np.mean((fitted[half] - circuit[half]) ** 2))
        assert error < 0.3 * loaded**2 * np.std(circuit[half])
        # And it is worth it: without, the error is at least ten times as large.
        ideal = weights_of(v[half] @ g, 40.0)
        assert np.sqrt(np.mean((ideal - circuit[half]) ** 2)) > 10 * error


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize(
    "row_sizes, column_sizes", [((7,), (5,)), ((4, 3), (5,)), ((3, 2, 2), (3, 2))]
)
def test_each_tile_has_wires_of_its_own(solved, row_sizes, column_sizes):
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(6, 7)), rng.uniform(-1, 1, (7, 5))
    ends = {"r_wire_ohm": 20.0, "r_source_ohm": 40.0, "r_sink_ohm": 60.0}
    stage = WireResistance(**ends, g_max_us=200.0, g_min_us=10.0, solved=solved)
    found = analog_mvm(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        (stage,),
        row_sizes=row_sizes,
        column_sizes=column_sizes,
    )
    expected, top = np.zeros((6, 5)), 0
    for rows in row_sizes:
        left = 0
        for columns in column_sizes:
            cut = np.s_[top : top + rows, left : left + columns]
            g, v = pairs(w[cut], 200.0, 10.0), x[:, cut[0]]
            if solved:
                currents = crossbar_currents(g, v, **ends)
            else:
                currents = v @ apparent_conductances(g, **ends)
            expected[:, cut[1]] += weights_of(np.asarray(currents), 200.0, 10.0)
            left += columns
        top += rows
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    assert np.max(np.abs(found - x @ w)) > 0.1


def test_the_gradient_is_the_true_one():
    rng = np.random.default_rng(5)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 6), (6, 4)))

    def loss(x, w, solved):
        stage = WireResistance(r_wire_ohm=50.0, g_max_us=100.0, solved=solved)
        y = analog_mvm(x, w / 3, (stage,), row_sizes=(3, 3), column_sizes=(2, 2))
        return jnp.sum(y**2)

    for solved in (False, True):
        slopes = jax.grad(loss, (0, 1))(x, w, solved)
        for name, slope in zip("xw", slopes, strict=True):
            along = jnp.asarray(rng.normal(size=slope.shape), jnp.float32)

            def moved(step, along=along, name=name, solved=solved):
                dx, dw = (step * along, 0) if name == "x" else (0, step * along)
                return loss(x + dx, w + dw, solved)

            by_differences = (moved(1e-2) - moved(-1e-2)) / 2e-2
            found = jnp.sum(slope * along)
            np.testing.assert_allclose(found, by_differences, rtol=5e-3)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("size", [0.05, 1.0, 4.0])
def test_wires_have_the_conductances_that_the_converter_writes(size, per_column):
    """Of weights of any size, cut into tiles that are scaled one by one."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(5, 12)), size * rng.uniform(-1, 1, (12, 6))
    ends = {"r_wire_ohm": 20.0, "r_source_ohm": 300.0, "r_sink_ohm": 100.0}
    converter = hw.SinglePairConductanceConverter(
        g_max=50.0, g_min=2.0, per_column=per_column
    )
    stage = WireResistance(**ends, g_max_us=98.0, g_min_us=2.0, solved=True)
    chip = hw.Hardware(
        converter=converter,
        forward=hw.IOParameters(stages=(stage,)),
        mapping=hw.MappingParameter(
            max_input_size=7,
            max_output_size=4,
            weight_scaling_omega=0.5,
            weight_scaling_columnwise=per_column,
        ),
    )
    expected = np.zeros((5, 6))
    for rows in (slice(0, 6), slice(6, 12)):
        for columns in (slice(0, 3), slice(3, 6)):
            tile = w[rows, columns]
            axis = 0 if per_column else None
            k = 48.0 / np.abs(tile).max(axis=axis, keepdims=True)
            both = np.stack([np.maximum(k * tile, 0), np.maximum(-k * tile, 0)], -1)
            g = 1e-6 * (2.0 + both.reshape(len(tile), -1))
            held, _ = converter.convert_to_conductances(jnp.asarray(tile, jnp.float32))
            pair = jnp.stack(held, axis=-1).reshape(g.shape)
            np.testing.assert_allclose(1e-6 * pair, g, rtol=1e-5)
            currents = crossbar_currents(g, x[:, rows], **ends)
            ends_of = np.asarray(currents, np.float64).reshape(5, -1, 2)
            expected[:, columns] += (ends_of[..., 0] - ends_of[..., 1]) * 1e6 / k
    analog = hw.analogize(nn.Dense(6, use_bias=False), chip)
    params = {"kernel": jnp.asarray(w, jnp.float32)}
    found = analog.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found / size, expected / size, rtol=1e-3, atol=1e-4)
    assert np.max(np.abs(found - x @ w)) > 0.05 * size


LAYERS = {
    "dense": (nn.Dense(6), (4, 10)),
    "convolution": (nn.Conv(6, (3, 3)), (2, 5, 5, 3)),
    "grouped convolution": (nn.Conv(6, (3,), feature_group_count=3), (2, 5, 3)),
    "transposed convolution": (nn.ConvTranspose(4, (3,)), (2, 5, 3)),
    "einsum": (nn.Einsum((2, 5, 3), "nk,hkd->nhd"), (3, 5)),
}
WIRES = WireResistance(r_wire_ohm=30.0, g_max_us=100.0)
CHIP = hw.Hardware(
    forward=hw.IOParameters(stages=(WIRES,)),
    mapping=hw.MappingParameter(max_input_size=4, max_output_size=4),
)


@pytest.mark.parametrize("name", LAYERS)
def test_wires_are_on_in_every_kind_of_layer(name):
    layer, shape = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(layer, CHIP)
    variables = analog.init(jax.random.key(1), x)
    plain = layer.apply({"params": hw.strip(variables["params"])}, x)
    lost = jnp.max(jnp.abs(analog.apply(variables, x) - plain))
    assert 1e-3 < lost / jnp.max(jnp.abs(plain)) < 0.3
    assert "wires of 30 ohm" in str(hw.inspect(analog, variables, x))


def test_wires_are_on_in_nnx_and_proved():
    model = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(model, CHIP, rngs=nnx.Rngs(mismatch=1))
    assert jnp.max(jnp.abs(analog(x) - model(x))) > 1e-3
    hw.assert_active(analog, None, x)


def test_wires_survive_toml_and_the_export(tmp_path):
    analog = hw.analogize(nn.Dense(6), CHIP)
    x = jnp.ones((2, 10))
    variables = analog.init(jax.random.key(0), x)
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan)
    loaded = hw.load(tmp_path / "chip")
    (layer,) = loaded.plan.weights
    assert layer.hardware.forward.stages == (WIRES,)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"r_wire_ohm": 0.0}, "do nothing"),
        ({"r_wire_ohm": -1.0}, "greater than or equal to 0"),
        ({"r_wire_ohm": 1.0, "g_min_us": 25.0}, "must be below"),
    ],
)
def test_wires_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        WireResistance(**options)
