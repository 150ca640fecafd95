import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.physics.converters import Converter
from hwtrain.physics.management import Management, bound_scale, noise_scale, shift
from hwtrain.physics.mvm import analog_mvm
from hwtrain.physics.periphery import Periphery, read_keys


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
    periphery = Periphery(dac=Converter(bound=1.0), management=Management(noise="max"))
    y = analog_mvm(x, w, periphery, row_sizes=(3, 2), column_sizes=(1,))
    # First tile: scaled by 3, nothing is clipped. Second: scale 1, clipped to -1.
    np.testing.assert_allclose(y, [[1 + 2 + 3 - 1 - 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "limit, expected", [(1000.0, 1024.0), (15.5, 16.0), (1.0, 2.0), (0.5, 1.0)]
)
def test_doubling_ends_at_the_first_power_of_two_above_the_limit(limit, expected):
    scale = bound_scale(jnp.ones(1), lambda s: s < jnp.inf, limit=limit)
    assert float(scale[0]) == expected


def test_every_vector_doubles_its_own_scale():
    needed = jnp.array([0.5, 3.0, 9.0])
    scale = bound_scale(jnp.ones(3), lambda s: s < needed, limit=1000.0)
    np.testing.assert_array_equal(scale, [1, 4, 16])


def test_the_worst_case_is_the_second_trial():
    worst = jnp.array([5.0, 5.0])
    scale = bound_scale(
        jnp.ones(2), lambda s: s < jnp.array([3.0, 7.0]), limit=8.0, worst_case=worst
    )
    np.testing.assert_array_equal(scale, [5, 10])


def _bounded(x, w, **options):
    periphery = Periphery(
        dac=Converter(bound=1.0),
        adc=Converter(bound=1.0),
        management=Management(noise="abs_max", bound="iterative"),
    )
    rows, columns = w.shape
    return analog_mvm(x, w, periphery, row_sizes=(rows,), column_sizes=(columns,))


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


def test_a_vector_of_zeros_gives_zeros_without_noise():
    periphery = Periphery(
        adc=Converter(bound=1.0),
        out_noise=10.0,
        management=Management(noise="abs_max", bound="iterative"),
    )
    y = analog_mvm(
        jnp.zeros((2, 3)),
        jnp.ones((3, 4)),
        periphery,
        row_sizes=(3,),
        column_sizes=(4,),
        keys=read_keys(jax.random.key(0)),
    )
    np.testing.assert_array_equal(y, 0)


def test_shift_keeps_what_a_softmax_sees():
    y = jnp.array([[3.0, 1.0, -0.5, 2.5]]).reshape(1, 1, 2, 2)
    shifted = shift(y, (2, 2), bound=2.0)
    np.testing.assert_allclose(shifted, y - 1.0)
    low = jnp.full((1, 1, 1, 2), -5.0)
    np.testing.assert_array_equal(shift(low, (2,), bound=2.0), low)
