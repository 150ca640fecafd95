"""The integers of digital units, next to NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hwtrain as hw
from hwtrain.periphery.digital_format import to_integers


def expected(y, bits, full_scale=None):
    """The same in NumPy and float64: integers from -(2^(b-1) - 1) to 2^(b-1) - 1."""
    y = np.asarray(y, np.float64)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(y).max(axis=-1, keepdims=True)
    step = (largest if full_scale is None else full_scale) / top
    step = np.where(step > 0, step, 1.0)
    return np.clip(np.rint(y / step), -top, top) * step


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
@pytest.mark.parametrize("full_scale", [None, 1.7])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 4, 33)])
def test_as_in_numpy(bits, full_scale, shape):
    y = 2 * np.random.default_rng(bits).normal(size=shape).astype(np.float32)
    found = jax.jit(lambda y: to_integers(y, bits, full_scale))(y)
    np.testing.assert_allclose(
        found, expected(y, bits, full_scale), rtol=1e-6, atol=1e-6
    )


def test_ties_go_to_the_even_level_and_large_numbers_to_the_full_scale():
    y = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 3.4, 100.0, -100.0])
    found = hw.DigitalFormat(bits=3, full_scale=3.0).store(y)
    np.testing.assert_array_equal(found, [0, 2, 2, 0, -2, 3, 3, -3])


def test_two_bits_are_three_levels():
    found = hw.DigitalFormat(bits=2, full_scale=2.0).store(jnp.array([0.9, 1.1, -5.0]))
    np.testing.assert_array_equal(found, [0, 2, -2])


def test_gradient_is_one_within_the_full_scale_and_zero_beyond():
    y = jnp.array([0.3, -2.9, 3.0, 3.4, 3.6, -7.0])
    chip = hw.DigitalFormat(bits=3, full_scale=3.0)
    slope = jax.grad(lambda y: chip.store(y).sum())(y)
    # Up to half a step beyond, a number is rounded to the full scale.
    np.testing.assert_array_equal(slope, [1, 1, 1, 1, 0, 0])


def test_gradient_does_not_pass_through_the_scale_of_a_vector():
    y = jax.random.normal(jax.random.key(0), (4, 9))
    given = jax.random.normal(jax.random.key(1), (4, 9))
    _, back = jax.vjp(hw.DigitalFormat(bits=3).store, y)
    np.testing.assert_allclose(back(given)[0], given, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("full_scale", [None, 2.0])
def test_narrow_results_are_rounded_in_float32(dtype, full_scale):
    y = jax.random.normal(jax.random.key(0), (8, 128)).astype(dtype)
    found = hw.DigitalFormat(bits=8, full_scale=full_scale).store(y)
    wide = np.asarray(y, np.float64)
    assert found.dtype == y.dtype
    # In narrow numbers, some lie halfway between two levels.
    shifts = (0, 1e-6, -1e-6)
    right = [expected(wide * (1 + shift), 8, full_scale) for shift in shifts]
    if full_scale is None:
        step = np.abs(wide).max(-1, keepdims=True) / 127
        right = [step * np.rint(wide * (1 + shift) / step) for shift in shifts]
    same = [np.asarray(found) == each.astype(y.dtype) for each in right]
    assert np.any(same, axis=0).all()
    assert np.mean(same[0]) > 0.99


def test_vectors_do_not_depend_on_each_other():
    y = (
        jax.random.normal(jax.random.key(0), (6, 5, 7))
        * jnp.arange(1.0, 7)[:, None, None]
    )
    store = hw.DigitalFormat(bits=4).store
    np.testing.assert_array_equal(jax.vmap(jax.vmap(store))(y), store(y))
    np.testing.assert_array_equal(store(y[2, 3]), store(y)[2, 3])


@pytest.mark.parametrize("y", [jnp.zeros((2, 3)), jnp.zeros((2, 0)), jnp.float32(0.3)])
def test_vectors_of_zeros_and_single_numbers_stay_as_they_are(y):
    np.testing.assert_array_equal(hw.DigitalFormat(bits=3).store(y), y)


def test_a_vector_of_numbers_without_a_step_is_finite():
    tiny = jnp.full((3,), 1e-44)
    assert np.isfinite(hw.DigitalFormat(bits=8).store(tiny)).all()


def test_small_vectors_have_their_steps():
    y = jnp.array([3e-37, 1e-37, -2e-38])
    found = hw.DigitalFormat(bits=5).store(y)
    np.testing.assert_allclose(found, expected(y, 5), rtol=1e-6)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_vector_without_a_full_scale_becomes_nan_alone(odd):
    y = jnp.array([[odd, 0.3, 0.8], [0.1, 0.3, 0.8]])
    found = hw.DigitalFormat(bits=4).store(y)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], expected(y[1], 4), rtol=1e-6)


def test_infinities_are_clipped_to_a_given_full_scale_and_nan_stays_nan():
    y = jnp.array([np.nan, np.inf, -np.inf, 0.4])
    found = hw.DigitalFormat(bits=3, full_scale=1.0).store(y)
    np.testing.assert_allclose(found, [np.nan, 1.0, -1.0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bits", [2, 5, 8, 12, 16, 23, 24])
@pytest.mark.parametrize("share", [1.0, 0.88])
def test_no_number_exceeds_the_full_scale(dtype, bits, share):
    largest = (share * jnp.finfo(dtype).max).astype(dtype)
    y = jnp.stack([largest, -largest, largest / 3])
    found = hw.DigitalFormat(bits=bits).store(y)
    assert (jnp.abs(found) <= largest).all()
    right = expected(y, bits)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), right, rtol=2 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize(
    "fields", [{"bits": 1}, {"bits": 25}, {"full_scale": 0.0}, {"full_scale": -1.0}]
)
def test_formats_without_levels_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        hw.DigitalFormat(**fields)
