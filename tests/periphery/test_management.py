import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.periphery import IOParameters, analog_mvm
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery.management import bound_scale, noise_scale
from hwtrain.periphery.shift import shifted


def _tiles(rows):
    return jnp.asarray(rows, jnp.float32)[:, None, None, :]


def test_scales_of_every_kind_of_noise_management():
    x = _tiles([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -3.0, -0.5]])
    expected = {
        "abs_max": [2.0, 0.0, 3.0],
        "max": [1.0, 1.0, 1.0],
        "constant": [1.0, 1.0, 1.0],
        # Larger of max |x| and 0.6 / 0.5 times the larger sum of one sign.
        "abs_max_np_sum": [2.4, 0.0, 5.4],
    }
    for kind, values in expected.items():
        scale = noise_scale(x, (3,), kind=kind, out_bound=0.5)
        np.testing.assert_allclose(scale.ravel(), values, rtol=1e-6)
    limited = noise_scale(x, (3,), kind="abs_max", threshold=2.5)
    np.testing.assert_allclose(limited.ravel(), [2.0, 0.0, 2.5])
    constant = noise_scale(x, (3,), kind="constant", threshold=2.5)
    np.testing.assert_allclose(constant.ravel(), [2.5, 2.5, 2.5])


def test_the_padding_of_an_unequal_tile_is_not_a_largest_value():
    # Five inputs on tiles of three and two; the last tile holds negative values only.
    x = jnp.array([[1.0, 2.0, 3.0, -4.0, -5.0]])
    w = jnp.ones((5, 1))
    periphery = IOParameters(inp_bound=1.0, noise_management="max")
    y = analog_mvm(x, w, periphery.parts, row_sizes=(3, 2), column_sizes=(1,))
    # First tile: scaled by 3, nothing is clipped. Second: scale 1, clipped to -1.
    np.testing.assert_allclose(y, [[1 + 2 + 3 - 1 - 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "limit, expected", [(1000.0, 1024.0), (15.5, 16.0), (1.0, 2.0), (0.5, 1.0)]
)
def test_doubling_ends_at_the_first_power_of_two_above_the_limit(limit, expected):
    def read(number, scale):
        return scale < jnp.inf, number * jnp.ones(1)

    scale, number = bound_scale(jnp.ones(1), read, limit=limit)
    assert number == np.log2(expected)
    assert float(scale[0]) == expected


def test_every_vector_doubles_its_own_scale():
    needed = jnp.array([0.5, 3.0, 9.0])

    def read(number, scale):
        return scale < needed, number * jnp.ones(3)

    scale, last_read = bound_scale(jnp.ones(3), read, limit=1000.0)
    np.testing.assert_array_equal(scale, [1, 4, 16])
    np.testing.assert_array_equal(last_read, [0, 2, 4])


def test_the_worst_case_is_the_second_trial():
    worst = jnp.array([5.0, 5.0])

    def read(number, scale):
        return scale < jnp.array([3.0, 7.0]), ()

    scale, _ = bound_scale(jnp.ones(2), read, limit=8.0, worst_case=worst)
    np.testing.assert_array_equal(scale, [5, 10])


def _bounded(x, w, **options):
    periphery = IOParameters(
        inp_bound=1.0,
        out_bound=1.0,
        noise_management="abs_max",
        bound_management="iterative",
    )
    rows, columns = w.shape
    return analog_mvm(x, w, periphery.parts, row_sizes=(rows,), column_sizes=(columns,))


def test_iterative_bound_management_undoes_clipping_and_its_gradient_is_exact():
    x = jax.random.normal(jax.random.key(0), (16, 8))
    w = jax.random.normal(jax.random.key(1), (8, 5))
    np.testing.assert_allclose(_bounded(x, w), x @ w, rtol=1e-5, atol=1e-5)
    d = jax.random.normal(jax.random.key(2), (16, 5))
    _, pull = jax.vjp(_bounded, x, w)
    _, exact = jax.vjp(jnp.matmul, x, w)
    for ours, theirs in zip(pull(d), exact(d)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bound_management_works_in_forward_mode_jit_and_vmap():
    x = jax.random.normal(jax.random.key(0), (4, 8))
    w = jax.random.normal(jax.random.key(1), (8, 5))
    _, tangent = jax.jvp(lambda x: _bounded(x, w), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, jnp.ones_like(x) @ w, rtol=1e-5, atol=1e-5)
    chips = jnp.stack([w, 2 * w])
    y = jax.jit(jax.vmap(lambda w: _bounded(x, w)))(chips)
    np.testing.assert_allclose(y[1], 2 * y[0], rtol=1e-5, atol=1e-5)


# Mean and deviation of 40 000 reads by aihwkit 1.2.0: w = x = 1, abs_max, out_bound 1,
# out_noise .06. Each round of the bound management is a new read: a vector that was
# clipped by its noise is read again at half the input.
@pytest.mark.parametrize(
    ("w", "mean", "std"), [(1.0, 0.9758, 0.0915), (1.9, 1.8665, 0.137)]
)
def test_every_round_of_bound_management_is_a_new_read(w, mean, std):
    reads = 40_000
    periphery = IOParameters(
        inp_bound=1.0,
        out_bound=1.0,
        out_noise=0.06,
        noise_management="abs_max",
        bound_management="iterative",
    )
    y = analog_mvm(
        jnp.ones((reads, 1)),
        jnp.full((1, 1), w),
        periphery.parts,
        row_sizes=(1,),
        column_sizes=(1,),
        keys=read_keys(jax.random.key(0)),
    )
    y = np.float64(y)
    # Both sides are means of as many reads; a deviation has a kurtosis below 9.
    error = np.sqrt(2 / reads) * std
    assert abs(y.mean() - mean) < 4 * error + 5e-5, y.mean()
    assert abs(y.std() - std) < 4 * np.sqrt(2) * error + 5e-5, y.std()


def _by_rounds(w, noise, bound, rng, reads):
    """Reads with iterative bound management, in NumPy."""
    scale, y = np.ones(reads), np.full(reads, np.inf)
    while (left := np.abs(y) > bound).any():
        y[left] = w / scale[left] + noise * rng.normal(size=left.sum())
        scale[left & (np.abs(y) > bound)] *= 2
    return y * scale


def test_rounds_have_the_distribution_of_a_reread_in_numpy():
    reads = 40_000
    periphery = IOParameters(
        inp_bound=1.0,
        out_bound=1.0,
        out_noise=0.3,
        noise_management="abs_max",
        bound_management="iterative",
    )
    w = jnp.array([[0.7, 0.0, -0.2]])
    y = analog_mvm(
        jnp.ones((reads, 1)),
        w[:, :1],
        periphery.parts,
        row_sizes=(1,),
        column_sizes=(1,),
        keys=read_keys(jax.random.key(3)),
    )
    theirs = _by_rounds(0.7, 0.3, 1.0, np.random.default_rng(0), reads)
    both = np.sort(np.concatenate([np.float64(y)[:, 0], theirs]))
    ours = np.searchsorted(np.sort(np.float64(y)[:, 0]), both, side="right") / reads
    other = np.searchsorted(np.sort(theirs), both, side="right") / reads
    # Kolmogorov-Smirnov, at a level of 1e-6.
    assert np.abs(ours - other).max() < np.sqrt(-np.log(1e-6 / 2) / reads)


def test_doubling_stops_by_the_step_of_the_dac():
    # The step is 2 x 0.5 x 1/8: above 0.25 / 0.125 = 2 no factor is doubled; 4 is kept.
    periphery = IOParameters(
        inp_bound=0.5,
        inp_res=1 / 8,
        out_bound=1.0,
        bound_management="iterative",
    )
    y = analog_mvm(
        jnp.array([[0.5]]),
        jnp.array([[100.0]]),
        periphery.parts,
        row_sizes=(1,),
        column_sizes=(1,),
    )
    np.testing.assert_allclose(y, [[4.0]])


@pytest.mark.parametrize("bound", ["none", "iterative"])
def test_a_vector_of_zeros_gets_the_noise_of_its_inputs(bound):
    # As in both engines of aihwkit: with noise on inputs, zeros are read at scale 1.
    periphery = IOParameters(
        inp_bound=1.0,
        out_bound=100.0,
        inp_noise=0.1,
        noise_management="abs_max",
        bound_management=bound,
    )
    reads, rows = 10_000, 9
    y = analog_mvm(
        jnp.zeros((reads, rows)),
        jnp.ones((rows, 1)),
        periphery.parts,
        row_sizes=(rows,),
        column_sizes=(1,),
        keys=read_keys(jax.random.key(0)),
    )
    expected = 0.1 * np.sqrt(rows)
    assert abs(np.std(y) - expected) < 4 * expected / np.sqrt(2 * reads)


def test_a_vector_of_zeros_gives_zeros_without_noise():
    periphery = IOParameters(
        out_bound=1.0,
        out_noise=10.0,
        noise_management="abs_max",
        bound_management="iterative",
    )
    y = analog_mvm(
        jnp.zeros((2, 3)),
        jnp.ones((3, 4)),
        periphery.parts,
        row_sizes=(3,),
        column_sizes=(4,),
        keys=read_keys(jax.random.key(0)),
    )
    np.testing.assert_array_equal(y, 0)


def test_shift_keeps_what_a_softmax_sees():
    y = jnp.array([[3.0, 1.0, -0.5, 2.5]]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(shifted(y, (2, 2), bound=2.0), y - 1.0)
    low = jnp.full((1, 1, 1, 2), -5.0)
    np.testing.assert_array_equal(shifted(low, (2,), bound=2.0), low)
