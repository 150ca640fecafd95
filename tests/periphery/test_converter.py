import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.periphery._converter import (
    Converter,
    convert,
    from_bits,
    round_to_level,
    saturate,
)

QUARTERS = Converter(bound=1.0, res=1 / 8)
ONES = Converter(bound=1.0, res=1 / 2)


@pytest.mark.parametrize("bits, levels", [(2, 3), (4, 15), (8, 255)])
def test_a_converter_of_b_bits_has_two_to_the_b_minus_one_levels(bits, levels):
    converter = Converter(bound=1.5, res=from_bits(bits))
    y = convert(jnp.linspace(-2, 2, 40_001), converter)
    assert len(np.unique(np.asarray(y))) == levels
    assert float(y.max()) == 1.5 and float(y.min()) == -1.5


def test_ties_go_to_the_even_level():
    y = round_to_level(jnp.array([0.125, 0.375, 0.625, -0.125, -0.375]), QUARTERS)
    np.testing.assert_array_equal(y, [0.0, 0.5, 0.5, 0.0, -0.5])


def test_stochastic_rounding_is_right_in_the_mean():
    count = 100_000
    u = jax.random.uniform(jax.random.key(0), (count,))
    y = round_to_level(jnp.full(count, 0.3), ONES, uniform=u)
    assert set(np.unique(np.asarray(y))) == {0.0, 1.0}
    # Standard deviation of a Bernoulli variable of probability 0.3.
    assert abs(float(y.mean()) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)


def test_the_gradient_passes_within_the_bound_at_it_and_not_beyond():
    converter = Converter(bound=1.0, res=1 / 126)
    x = jnp.array([-1.2, -1.0, -0.4, 0.3, 1.0, 1.2])
    gradient = jax.vmap(jax.grad(lambda v: convert(v, converter)))(x)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("bits", range(2, 13))
def test_the_gradient_passes_at_the_bound_whatever_the_step(bits):
    bound = 3.0
    converter = Converter(bound=bound, res=from_bits(bits))
    value, gradient = jax.value_and_grad(lambda v: convert(v, converter))(bound)
    assert (float(value), float(gradient)) == (bound, 1.0)


def test_without_levels_and_bound_nothing_happens():
    x = jnp.array([0.3, -7.0])
    np.testing.assert_array_equal(convert(x, Converter()), x)
    np.testing.assert_array_equal(saturate(x, None), x)


def test_forward_mode_works():
    converter = Converter(bound=1.0, res=0.25)
    x = jnp.array([0.3, 2.0])
    _, tangent = jax.jvp(lambda x: convert(x, converter), (x,), (jnp.ones(2),))
    np.testing.assert_array_equal(tangent, [1, 0])
