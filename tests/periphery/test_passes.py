"""Reads of a tile in several passes: NumPy, statistics, gradients, proofs, costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts.cost_constants import CostParameter
from hwtrain.evaluate import cost
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery.input_bits import InputBits
from hwtrain.periphery.mvm import analog_mvm
from hwtrain.periphery.separate_signs import SeparateSigns, SeparateSignsDigitally

LEVELS, BOUND = 127, 3.0
IO = {"inp_bits": 8, "out_bits": 6, "out_bound": BOUND}
TYPES = {
    "pos_neg_separate": {"ir_drop": 1.0, "ir_drop_g_ratio": 60.0},
    "pos_neg_separate_digital_sum": {"ir_drop": 1.0, "ir_drop_g_ratio": 60.0},
    "split_mode": {"split_mode_bit_shift": 4},
    "bit_wise": {},
}


def dropped(x, w, ratio):
    """The product with aihwkit's IR drop, in NumPy."""
    rows = len(w)
    a = np.abs(x) @ np.abs(w) * rows / ratio
    farther = 1 - (1 - np.arange(rows) / rows) ** 2
    return x @ w - (0.5 * a - 0.2 * a**2 + 0.05 * a**3) * ((x * farther) @ w)


def by_hand(x, w, mv_type, shift=4):
    """One tile in NumPy, with the converters of `IO`."""
    step = 2 * BOUND / 62
    levels = np.rint(np.clip(x, -1, 1) * LEVELS)

    def adc(y):
        return np.clip(np.rint(y / step) * step, -BOUND, BOUND)

    def tile(levels):
        return dropped(levels / LEVELS, w, 60.0)

    if mv_type == "pos_neg_separate":
        return adc(tile(np.maximum(levels, 0)) + tile(np.minimum(levels, 0)))
    if mv_type == "pos_neg_separate_digital_sum":
        return adc(tile(np.maximum(levels, 0))) + adc(tile(np.minimum(levels, 0)))
    size, sign = np.abs(levels).astype(int), np.sign(levels)
    if mv_type == "split_mode":
        masks = {0: 2**shift - 1, shift: 127 >> shift}
    else:
        masks = dict.fromkeys(range(7), 1)
    return sum(
        2**k * adc(sign * (size >> k & mask) / LEVELS @ w) for k, mask in masks.items()
    )


@pytest.mark.parametrize("mv_type", TYPES)
@pytest.mark.parametrize(
    "row_sizes, column_sizes", [((9,), (5,)), ((5, 4), (5,)), ((3, 3, 3), (2, 2, 1))]
)
def test_passes_are_those_of_numpy(mv_type, row_sizes, column_sizes):
    rng = np.random.default_rng(len(mv_type))
    x, w = rng.normal(size=(20, 9)), rng.uniform(-1, 1, (9, 5))
    io = hw.IOParameters(mv_type=mv_type, **IO, **TYPES[mv_type])
    found = analog_mvm(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        io.parts,
        row_sizes=row_sizes,
        column_sizes=column_sizes,
    )
    expected, top = np.zeros((20, 5)), 0
    for rows in row_sizes:
        part = slice(top, top + rows)
        expected += by_hand(x[:, part], w[part], mv_type)
        top += rows
    # An output on the border between two levels of the ADC may round either way.
    off = np.abs(np.asarray(found) - expected) > 1e-5 * BOUND
    assert np.mean(off) < 0.02
    # All kinds differ from a single pass.
    once = hw.IOParameters(
        **IO, **{k: v for k, v in TYPES[mv_type].items() if "ir" in k}
    )
    plain = analog_mvm(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        once.parts,
        row_sizes=row_sizes,
        column_sizes=column_sizes,
    )
    assert np.mean(np.abs(np.asarray(plain) - expected) > 1e-3) > 0.05


def test_passes_are_those_of_aihwkit(golden):
    cases = golden("aihwkit_passes")
    assert {case["mv_type"] for case in cases.values()} == {"one_pass", *TYPES}
    for name, case in cases.items():
        fields = {k: None if v == -1 else v for k, v in case["forward"].items()}
        io = hw.IOParameters(inp_bound=1.0, mv_type=case["mv_type"], **fields)
        w = jnp.asarray(case["w"], jnp.float32).T
        found = analog_mvm(
            jnp.asarray(case["x"], jnp.float32),
            w,
            io.parts,
            row_sizes=w.shape[:1],
            column_sizes=w.shape[1:],
        )
        np.testing.assert_allclose(found, case["y"], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "mv_type, variance",
    [
        ("one_pass", 1),
        ("pos_neg_separate", 1),
        ("pos_neg_separate_digital_sum", 2),
        ("split_mode", 1 + 8**2),
        ("bit_wise", sum(4**k for k in range(7))),
    ],
)
def test_each_converted_pass_has_noise_of_its_own(mv_type, variance):
    count, sigma = 40_000, 0.01
    io = hw.IOParameters(mv_type=mv_type, inp_bits=8, out_noise=sigma, out_bound=50.0)
    x, w = jnp.ones((count, 1)), jnp.full((1, 1), 0.5)
    keys = read_keys(jax.random.key(7))
    y = analog_mvm(x, w, io.parts, row_sizes=(1,), column_sizes=(1,), keys=keys)
    expected = sigma * variance**0.5
    assert abs(np.std(y) / expected - 1) < 5 / np.sqrt(2 * count)
    assert abs(np.mean(y) - 0.5) < 5 * expected / np.sqrt(count)


def test_the_read_asymmetry_is_frozen_with_a_chip_and_acts_on_negative_inputs():
    spread, rows, columns = 0.1, 60, 500
    stages = hw.IOParameters(
        mv_type="pos_neg_separate", w_read_asymmetry_dtod=spread
    ).parts
    w = jnp.ones((rows, columns))

    def response(x, key):
        return analog_mvm(
            x, w, stages, row_sizes=(rows,), column_sizes=(columns,), chip_key=key
        )

    eye = jnp.eye(rows)
    first, second = (response(-eye, jax.random.key(k)) for k in (1, 2))
    np.testing.assert_array_equal(first, response(-eye, jax.random.key(1)))
    np.testing.assert_allclose(response(eye, jax.random.key(1)), 1.0, rtol=1e-6)
    deviations = np.stack([-np.asarray(first) - 1, -np.asarray(second) - 1])
    count = deviations[0].size
    for deviation in deviations:
        assert abs(np.std(deviation) / spread - 1) < 5 / np.sqrt(2 * count)
        assert abs(np.mean(deviation)) < 5 * spread / np.sqrt(count)
    assert abs(np.corrcoef(*deviations.reshape(2, -1))[0, 1]) < 5 / np.sqrt(count)
    # Without a chip, there is none.
    np.testing.assert_allclose(response(-eye, None), -1.0, rtol=1e-6)


@pytest.mark.parametrize("mv_type", TYPES)
def test_the_gradient_passes_straight_through(mv_type):
    """On an ideal tile inside the levels, it is that of the product."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.uniform(-0.9, 0.9, (4, 6)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    io = hw.IOParameters(mv_type=mv_type, inp_bits=8)

    def loss(x, w):
        y = analog_mvm(x, w, io.parts, row_sizes=(3, 3), column_sizes=(3,))
        return jnp.sum(y * jnp.arange(12).reshape(4, 3))

    found = jax.grad(loss, (0, 1))(x, w)
    weights = np.arange(12).reshape(4, 3)
    levels = np.rint(np.asarray(x, np.float64) * LEVELS) / LEVELS
    np.testing.assert_allclose(found[0], weights @ np.asarray(w).T, rtol=2e-5)
    np.testing.assert_allclose(found[1], levels.T @ weights, rtol=2e-5, atol=1e-4)


LAYERS = {
    "dense": (nn.Dense(7), (5, 12)),
    "convolution": (nn.Conv(4, (3,), feature_group_count=2), (2, 6, 4)),
}


def _hardware(mv_type, **options):
    return hw.Hardware(
        forward=hw.IOParameters(mv_type=mv_type, **{**IO, **options}),
        input_range=hw.InputRangeParameter(),
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mv_type", TYPES)
def test_passes_are_proved_in_layers(layer, mv_type, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, _hardware(mv_type))
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    for stage in (SeparateSigns, SeparateSignsDigitally, InputBits):
        monkeypatch.setattr(stage, "around", lambda self, inner, x, ctx: inner(x))
    jax.clear_caches()
    with pytest.raises(ValueError, match="mv_type"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


@pytest.mark.parametrize("mv_type", TYPES)
def test_passes_are_on_in_nnx(mv_type):
    x = jax.random.normal(jax.random.key(0), (5, 12))
    outputs = []
    for kind in ("one_pass", mv_type):
        model = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
        chip = _hardware(kind, ir_drop=1.0, ir_drop_g_ratio=60.0)
        analog = hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=1))
        outputs.append(analog(x))
    assert jnp.max(jnp.abs(outputs[0] - outputs[1])) > 1e-3


@pytest.mark.parametrize(
    "mv_type, reads, conversions",
    [
        ("one_pass", 1, 1),
        ("pos_neg_separate", 2, 1),
        ("pos_neg_separate_digital_sum", 2, 2),
        ("split_mode", 2, 2),
        ("bit_wise", 7, 7),
    ],
)
def test_passes_are_counted_as_energy(mv_type, reads, conversions):
    analog = hw.analogize(nn.Dense(5, use_bias=False), _hardware(mv_type))
    x = jnp.ones((1, 10))
    variables = analog.init(jax.random.key(0), x)
    constants = CostParameter(
        source="ours", row_energy_fj=1.0, conversion_energy_fj=1000.0
    )
    found = cost(analog, variables, x, constants=constants)
    assert found.total.energy_fj == reads * 10 * 1.0 + conversions * 5 * 1000.0


def test_bits_in_passes_are_those_of_the_converter():
    analog = hw.analogize(nn.Dense(5, use_bias=False), _hardware("split_mode"))
    x = jnp.ones((1, 10))
    variables = analog.init(jax.random.key(0), x)
    constants = CostParameter(source="ours", row_energy_fj=1.0, input_bits_per_pass=1)
    # Each bit and the sign in a pass of its own, in groups or not.
    assert cost(analog, variables, x, constants=constants).total.energy_fj == 80


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mv_type": "bit_wise"}, "levels of the DAC"),
        ({"mv_type": "split_mode"}, "levels of the DAC"),
        ({"mv_type": "split_mode", "inp_bits": 4}, "leaves no bits"),
        ({"mv_type": "bit_wise", "inp_bits": 2}, "at least two bits"),
        ({"split_mode_bit_shift": 2}, 'mv_type="split_mode"'),
        ({"w_read_asymmetry_dtod": 0.1}, 'mv_type="pos_neg_separate"'),
        ({"mv_type": "three_passes"}, "expected"),
    ],
)
def test_passes_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        hw.IOParameters(**options)
