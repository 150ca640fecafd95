"""The analog multiplication: NumPy tile by tile, gradients, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from hwtrain._arrays import statistics, tiling
from hwtrain._arrays.random import draw_key
from hwtrain.periphery import IOParameters, analog_mvm
from hwtrain.periphery._range_gradient import PROBE_SCALE
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery.input_range import Range


def multiply(x, w, io, **options):
    """Multiplies, in one program, by a matrix on one tile unless sizes are given."""
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    rows = options.pop("row_sizes", w.shape[:1])
    columns = options.pop("column_sizes", w.shape[1:])

    @jax.jit
    def call(x, w, arrays):
        sizes = {"row_sizes": rows, "column_sizes": columns}
        stages = (Range(), *io.parts) if "input_range" in arrays else io.parts
        return analog_mvm(x, w, stages, **sizes, **arrays)

    return call(x, w, options)


TILINGS = [
    ((5,), (4,)),
    ((3, 2), (4,)),
    ((5,), (2, 2)),
    ((3, 2), (2, 2)),
    ((2, 2, 1), (2, 1, 1)),
]


def by_hand(x, w, *, row_sizes, column_sizes, ranges, scale, levels, bound):
    """The multiplication in NumPy, tile by tile: DAC and ADC of a number of levels."""
    y = np.zeros((len(x), w.shape[1]))
    top = 0
    for i, rows in enumerate(row_sizes):
        left = 0
        for j, columns in enumerate(column_sizes):
            part = slice(top, top + rows), slice(left, left + columns)
            s = np.broadcast_to(scale[i], (w.shape[1],))[part[1]]
            r = ranges[i, j]
            xn = np.clip(x[:, part[0]], -r, r) / r
            xn = np.round(xn * levels) / levels
            yn = xn @ (w[part] / s)
            yn = np.clip(np.round(yn / bound * levels) / levels * bound, -bound, bound)
            y[:, part[1]] += yn * s * r
            left += columns
        top += rows
    return y


@pytest.mark.sampled
@pytest.mark.parametrize("row_sizes, column_sizes", TILINGS)
@pytest.mark.parametrize("per_column", [False, True])
def test_tiles_have_their_own_converters_range_and_scale(
    row_sizes, column_sizes, per_column
):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 2, 5)), rng.normal(size=(5, 4))
    ranges = rng.uniform(0.5, 2, (len(row_sizes), len(column_sizes)))
    scale = rng.uniform(0.5, 2, (len(row_sizes), 4 if per_column else 1))
    y = multiply(
        x,
        w,
        IOParameters(inp_res=62.0, out_res=62.0, out_bound=1.5),
        row_sizes=row_sizes,
        column_sizes=column_sizes,
        input_range=jnp.asarray(ranges, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
    )
    expected = by_hand(
        x.reshape(6, 5),
        w,
        row_sizes=row_sizes,
        column_sizes=column_sizes,
        ranges=ranges,
        scale=scale,
        levels=31,
        bound=1.5,
    )
    np.testing.assert_allclose(y.reshape(6, 4), expected, rtol=1e-4, atol=1e-5)


EVERYTHING = IOParameters(
    inp_bits=6,
    inp_sto_round=True,
    inp_noise=0.02,
    inp_asymmetry=0.05,
    out_bits=8,
    out_bound=4.0,
    out_sto_round=True,
    out_noise=0.03,
    out_asymmetry=0.05,
    out_scale=1.5,
    noise_management="abs_max",
    bound_management="iterative",
    w_noise=0.02,
    w_noise_type="pcm_read",
    ir_drop=1.0,
    ir_drop_g_ratio=200.0,
    out_nonlinearity=0.2,
    slope_calibration=0.5,
    r_series=0.01,
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("row_sizes, column_sizes", TILINGS)
def test_everything_at_once_is_finite_in_value_and_gradient(row_sizes, column_sizes):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(6, 5)), rng.normal(size=(5, 4))
    x[0], w[:, 1] = 0, 0

    def loss(x, w):
        scale = statistics.absolute_maximum(w, row_sizes, per_column=True)
        y = multiply(
            x,
            w,
            EVERYTHING,
            row_sizes=row_sizes,
            column_sizes=column_sizes,
            scale=jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1)),
            keys=read_keys(jax.random.key(2)),
        )
        return jnp.sum(jnp.square(y))

    call = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = call(np.float32(x), np.float32(w))
    assert np.isfinite(value)
    for gradient in map(np.asarray, gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_without_a_key_nothing_is_drawn():
    io = IOParameters(
        out_noise=1.0, inp_noise=1.0, w_noise=1.0, w_noise_type="pcm_read"
    )
    x, w = jax.random.normal(jax.random.key(0), (2, 6, 5))[:, :5]
    np.testing.assert_allclose(multiply(x, w, io), x @ w, rtol=1e-5, atol=1e-6)


ROWS, SAMPLES = 16, 20_000


def deviations(io, x, w, **options):
    """Standard deviation of every output over many equal input vectors."""
    y = multiply(
        jnp.tile(x, (SAMPLES, 1)), w, io, keys=read_keys(jax.random.key(5)), **options
    )
    return jnp.mean(y, 0), jnp.std(y, 0)


@pytest.mark.parametrize(
    "io, expected",
    [
        (IOParameters(out_noise=0.3), lambda x, w: 0.3 * np.ones(3)),
        (
            IOParameters(inp_noise=0.2),
            lambda x, w: 0.2 * np.sqrt(np.sum(w**2, 0)),
        ),
        (
            IOParameters(w_noise=0.1, w_noise_type="additive_constant"),
            lambda x, w: 0.1 * np.sqrt(np.sum(x**2)) * np.ones(3),
        ),
        (
            IOParameters(w_noise=0.1, w_noise_type="pcm_read"),
            lambda x, w: 0.1 * np.sqrt((x**2) @ np.abs(w)),
        ),
    ],
    ids=["out_noise", "inp_noise", "additive_constant", "pcm_read"],
)
def test_noise_has_the_configured_deviation(io, expected):
    rng = np.random.default_rng(1)
    x, w = rng.uniform(-1, 1, ROWS), rng.uniform(-1, 1, (ROWS, 3))
    mean, std = deviations(io, x, w)
    sigma = expected(x, w)
    # Standard errors of a mean and of a standard deviation, times five.
    np.testing.assert_array_less(abs(mean - x @ w), 5 * sigma / np.sqrt(SAMPLES) + 1e-5)
    np.testing.assert_array_less(abs(std - sigma), 5 * sigma / np.sqrt(2 * SAMPLES))


def test_noise_is_in_normalised_units_and_adds_over_row_tiles():
    x, w = np.ones(4), np.ones((4, 1))
    _, std = deviations(
        IOParameters(out_noise=0.1),
        x,
        w,
        row_sizes=(2, 2),
        input_range=jnp.array([[2.0], [3.0]]),
        scale=jnp.array([[5.0], [7.0]]),
    )
    sigma = 0.1 * np.hypot(2 * 5, 3 * 7)
    assert abs(std[0] - sigma) < 5 * sigma / np.sqrt(2 * SAMPLES)


def test_the_deviation_of_the_output_noise_spreads_over_the_outputs_of_a_chip():
    columns = 400
    w = np.zeros((1, columns))
    io = IOParameters(out_noise=0.1, out_noise_std=0.2)

    @jax.jit
    def chip(seed):
        y = multiply(
            jnp.zeros((500, 1)),
            w,
            io,
            keys=read_keys(jax.random.key(5)),
            chip_key=jax.random.key(seed),
        )
        return jnp.std(y, 0)

    first, again, other = map(np.asarray, (chip(0), chip(0), chip(1)))
    np.testing.assert_array_equal(first, again)
    # Each is measured over 500 reads, so its own error adds to the spread.
    spread = 0.1 * np.hypot(0.2, 1 / np.sqrt(2 * 500))
    for sigma in (first, other):
        assert abs(sigma.mean() - 0.1) < 5 * spread / np.sqrt(columns)
        assert abs(sigma.std() - spread) < 5 * spread / np.sqrt(2 * columns)
    assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(columns)


@pytest.mark.optimised  # where outputs cancel, a rounding shows
def test_voltage_offsets_are_frozen_in_a_chip_and_zero_for_half_of_its_outputs():
    columns = 1000
    x, w = np.ones((1, 2)), np.full((2, columns), 0.5)
    io = IOParameters(v_offset_std=0.1, v_offset_w_min=0.0)
    # Eagerly, because one program rounds differently where outputs cancel.
    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    sizes = {"row_sizes": (2,), "column_sizes": (columns,)}
    call = functools.partial(analog_mvm, *arrays, chip_key=jax.random.key(0), **sizes)
    y = call(stages=io.parts)[0]
    offset = 1 - np.asarray(y)
    unchanged = abs(offset) < 1e-6
    assert abs(unchanged.mean() - 0.5) < 5 * 0.5 / np.sqrt(columns)
    # The others are half normal, of mean square 0.1^2.
    mean_square = np.mean(offset[~unchanged] ** 2)
    assert abs(mean_square / 0.01 - 1) < 5 * np.sqrt(2 / (columns / 2))
    # With a reference of devices that are off, it is subtracted at the offset voltage.
    both = call(stages=IOParameters(v_offset_std=0.1).parts)[0]
    np.testing.assert_allclose(
        both, (1 - offset) * (1 + 2) - (1 + offset) * 2, rtol=1e-5
    )


def test_the_saturation_spreads_over_the_outputs_of_a_chip():
    columns = 1000
    x, w = np.ones((1, 1)), np.ones((1, columns))
    io = IOParameters(out_bound=4.0, out_nonlinearity=0.8, out_nonlinearity_std=0.2)
    y = np.asarray(multiply(x, w, io, chip_key=jax.random.key(0))[0])
    strength = 4.0 * (1 / y - 1)
    sigma = 0.8 * 0.2
    assert abs(strength.mean() - 0.8) < 5 * sigma / np.sqrt(columns)
    assert abs(strength.std() - sigma) < 5 * sigma / np.sqrt(2 * columns)


@pytest.mark.parametrize("side", ["inp", "out"])
def test_stochastic_rounding_is_right_in_the_mean(side):
    options = {f"{side}_res": 4.0, f"{side}_sto_round": True, f"{side}_bound": 1.0}
    x, w = np.full(1, 0.3), np.ones((1, 1))
    mean, std = deviations(IOParameters(**options), x, w)
    # Between the levels 0 and 0.5, the upper with probability 0.6.
    sigma = 0.5 * np.sqrt(0.6 * 0.4)
    assert abs(mean[0] - 0.3) < 5 * sigma / np.sqrt(SAMPLES)
    assert abs(std[0] - sigma) < 5 * sigma / np.sqrt(SAMPLES)


def test_the_effects_draw_different_numbers():
    x = jnp.zeros((4, 8))
    key = jax.random.key(0)
    square = jnp.eye(8)
    inputs = multiply(x, square, IOParameters(inp_noise=1.0), keys=read_keys(key))
    outputs = multiply(x, square, IOParameters(out_noise=1.0), keys=read_keys(key))
    both = multiply(
        x, square, IOParameters(inp_noise=1.0, out_noise=1.0), keys=read_keys(key)
    )
    assert not jnp.isclose(inputs, outputs).any()
    np.testing.assert_allclose(both, inputs + outputs, rtol=1e-5, atol=1e-6)


def test_noise_passes_the_gradient_straight_through():
    io = IOParameters(out_noise=0.5, w_noise=0.5, w_noise_type="pcm_read")
    x = jax.random.normal(jax.random.key(0), (6, 5))
    w = jax.random.normal(jax.random.key(1), (5, 4))
    d = jax.random.normal(jax.random.key(2), (6, 4))

    @jax.jit
    def pull(x, w, d):
        noisy = functools.partial(multiply, io=io, keys=read_keys(jax.random.key(3)))
        return jax.vjp(noisy, x, w)[1](d)

    for ours, exact in zip(pull(x, w, d), (d @ w.T, x.T @ d)):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


def test_distortions_are_differentiated_exactly():
    io = IOParameters(
        ir_drop=1.0,
        ir_drop_g_ratio=50.0,
        out_bound=2.0,
        out_nonlinearity=1.0,
        r_series=0.1,
        inp_asymmetry=0.2,
        out_asymmetry=0.1,
    )
    x = jnp.asarray([[0.3, -0.2, 0.5]])
    w = jax.random.normal(jax.random.key(1), (3, 2)) / 2

    @jax.jit
    def loss(x, w):
        return jnp.sum(jnp.sin(multiply(x, w, io)))

    test_util.check_grads(loss, (x, w), order=1, modes=["rev"], rtol=2e-2)


def test_the_result_has_the_dtype_of_the_inputs_or_the_one_asked_for():
    x = jax.random.normal(jax.random.key(0), (6, 5), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (5, 4), jnp.bfloat16)
    io = IOParameters(inp_bits=4, out_bits=8, out_bound=4.0, out_noise=0.01)
    sizes = {"row_sizes": (5,), "column_sizes": (4,)}
    call = jax.jit(analog_mvm, static_argnums=2, static_argnames=(*sizes, "dtype"))
    call = functools.partial(call, x, w, io.parts, **sizes)
    y = call(keys=read_keys(jax.random.key(2)))
    assert y.dtype == jnp.bfloat16
    wide = call(dtype=jnp.float32)
    assert wide.dtype == jnp.float32


@pytest.mark.parametrize("columns", [8, 5])
def test_the_probe_counts_the_outputs_of_a_single_vector(columns):
    sizes = tiling.split_sizes(columns, 4)

    def total(probe):
        return multiply(
            jnp.ones(3),
            jnp.linspace(0.0, 1.0, columns) * jnp.ones((3, 1)),
            IOParameters(out_bound=1.0),
            row_sizes=(3,),
            column_sizes=sizes,
            input_range=jnp.ones((1, 2)),
            probe=probe,
        ).sum()

    sums = jax.jit(jax.grad(total))(jnp.zeros((1, 2, 6))) / PROBE_SCALE
    inside = np.split(3 * np.linspace(0, 1, columns) < 0.999, [sizes[0]])
    np.testing.assert_array_equal(sums[0, :, 4], sizes)
    np.testing.assert_array_equal(sums[0, :, 5], [each.sum() for each in inside])


def test_the_probe_counts_outputs_inside_the_bound():
    x = jnp.asarray([[1.0, 1.0, 1.0], [0.1, 0.1, 0.1]])
    w = jnp.ones((3, 5))
    probe = jnp.zeros((2, 2, 6))

    def total(probe):
        return multiply(
            x,
            w,
            IOParameters(out_bound=1.0),
            row_sizes=(2, 1),
            column_sizes=(3, 2),
            input_range=jnp.ones((2, 2)),
            probe=probe,
        ).sum()

    sums = jax.jit(jax.grad(total))(probe) / PROBE_SCALE
    np.testing.assert_array_equal(sums[..., 4], [[6, 4], [6, 4]])
    # Two rows of ones make 2 and 0.2; one row makes 1, which is at the bound, and 0.1.
    np.testing.assert_array_equal(sums[..., 5], [[3, 2], [3, 2]])
    np.testing.assert_array_equal(sums[..., 0], [[4, 4], [2, 2]])


@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_the_slope_is_calibrated_by_the_mean_of_the_chip_itself(sizes):
    bound, nu, std, kappa = 2.0, 0.4, 0.5, 0.7
    io = IOParameters(
        out_bound=bound,
        out_nonlinearity=nu,
        out_nonlinearity_std=std,
        slope_calibration=kappa,
    )
    chip = jax.random.key(11)
    x, w = np.full((1, 1), 0.5, np.float32), np.full((1, 5), 0.6, np.float32)
    y = analog_mvm(
        jnp.asarray(x),
        jnp.asarray(w),
        io.parts,
        row_sizes=(1,),
        column_sizes=sizes,
        chip_key=chip,
    )
    key = draw_key(chip, "", "output_nonlinearity")
    xi = np.float64(jax.random.normal(key, (1, len(sizes), sizes[0])))[0]
    expected = []
    for tile, size in zip(xi, sizes):
        n = nu / bound * np.abs(1 + std * tile[:size])
        slope = (1 + n.mean() * kappa * bound) ** 2
        expected += [slope * 0.3 / (1 + n * 0.3)]
    np.testing.assert_allclose(y[0], np.concatenate(expected), rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others have a barrier")
def test_a_chip_s_deviations_are_drawn_once():
    # Drawn again in each kernel of the outputs, they took newer XLA minutes to compile.
    x, w, key = jnp.ones((2, 3)), jnp.ones((3, 4)), jax.random.key(0)

    def branches(**spread):
        io = IOParameters(out_noise=0.1, **spread)

        def call(x, w, keys, chip_key):
            sizes = {"row_sizes": w.shape[:1], "column_sizes": w.shape[1:]}
            return analog_mvm(x, w, io.parts, **sizes, keys=keys, chip_key=chip_key)

        program = jax.jit(call).lower(x, w, read_keys(key), key).as_text()
        return program.count("stablehlo.case")

    assert branches(out_noise_std=0.1) == 2 * branches() > 0
