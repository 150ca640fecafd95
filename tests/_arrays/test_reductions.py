"""Reductions of functions of arrays, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import reductions


@pytest.mark.parametrize(
    ("shape", "axes"), [((64, 5), (-2, -1)), ((14, 3, 2), (-3,)), ((13, 4), (-2,))]
)
def test_two_sums_in_one_number(shape, axes):
    x, y = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    def sums(x, y):
        return reductions.sum_of(
            lambda x, y: jax.lax.complex(x, x * y), x, y, axes=axes
        )

    @jax.jit
    def sums_and_gradient(x, y):
        return sums(x, y), jax.grad(lambda x: jnp.imag(sums(x, y)).sum())(x)

    found, gradient = map(np.asarray, sums_and_gradient(x, y))
    np.testing.assert_allclose(gradient, y, rtol=1e-6)
    x, y = np.float64(x), np.float64(y)
    np.testing.assert_allclose(found.real, x.sum(axes), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.imag, (x * y).sum(axes), rtol=1e-4, atol=1e-5)
