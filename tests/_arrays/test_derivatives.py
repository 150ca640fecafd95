"""Custom derivatives under transformations of JAX, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays.derivatives import straight_through

W, VALUE = jnp.array([[0.5, -2.0], [3.0, 1.0], [0.2, 0.1]]), jnp.array([4.0, -1.0])
SCALE = jnp.array([2.0, 3.0])


@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("inner", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("outer", [lambda f: f, jax.jit])
@pytest.mark.parametrize("how", ["reverse", "forward"])
def test_the_gradient_passes_straight_through_a_map(mapped, inner, outer, how):
    w = W if mapped[0] == 0 else W[0]
    value = 2 * W + 1 if mapped[1] == 0 else VALUE

    def loss(w):
        @inner
        def each(w, value):
            return straight_through(w, value)[None, :, None] * SCALE[None, :, None]

        return jnp.sum(jnp.square(jax.vmap(each, mapped)(w, value)))

    # d/dw sum (c v)^2 = 2 c^2 v, where v stands in for w.
    slope = np.broadcast_to(2 * np.square(SCALE) * value, W.shape)
    slope = slope if mapped[0] == 0 else slope.sum(0)
    if how == "reverse":
        found = outer(jax.grad(loss))(w)
    else:
        found = outer(jax.jacfwd(loss))(w)
    np.testing.assert_allclose(found, slope, rtol=1e-6)


def test_what_the_gradient_goes_to_never_reaches_the_value():
    w = jnp.array([jnp.nan, jnp.inf, 1.0])
    for call in (straight_through, jax.jit(straight_through)):
        assert call(w, jnp.zeros(3)).tolist() == [0, 0, 0]
