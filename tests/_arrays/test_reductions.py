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


@pytest.mark.parametrize("size", [40, 48, 64, 128, 256, 288, 512])
def test_a_loop_over_rows_is_too_long_to_be_unrolled(size):
    """LLVM unrolls up to 32 iterations, and reads a column after the other then."""

    def largest(w):
        return reductions.reduced_of(
            jnp.abs, w, axes=(-2,), combine=jnp.maximum, reduce=jnp.max
        )

    w = np.random.default_rng(0).normal(size=(size, 8)).astype(np.float32)
    np.testing.assert_array_equal(largest(w), np.abs(w).max(0))
    loops = [
        equation.invars[0].aval.shape[0]
        for equation in jax.make_jaxpr(largest)(w).eqns
        if equation.primitive.name == "reduce_max"
    ]
    assert len(loops) == 1 and loops[0] > 32
