"""Clip bounds against NumPy, and updates that keep them to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwtrain.weights.clip import bounded_update, layer_gaussian


@pytest.mark.parametrize("per_column", [False, True])
def test_layer_gaussian_bound(per_column):
    w = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) + 0.5
    axis = 0 if per_column else None
    expected = 2.5 * w.std(axis=axis, ddof=1)
    bound = layer_gaussian(jnp.asarray(w), (9,), sigma=2.5, per_column=per_column)
    np.testing.assert_allclose(bound, np.broadcast_to(expected, bound.shape), 1e-5)
    limited = layer_gaussian(jnp.asarray(w), (9,), sigma=2.5, limit=0.1)
    np.testing.assert_allclose(limited, 0.1)


def test_equal_weights_are_not_clipped_to_nothing():
    assert layer_gaussian(jnp.ones((3, 2)), (3,), sigma=2.0)[0, 0] == jnp.inf


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("narrow", [False, True], ids=["wide update", "its own dtype"])
@pytest.mark.parametrize(
    ("weight", "update", "bound"),
    [(1, 1, 0.3), (1e-3, 10, 1.0), (100, 1, 1e-3), (1, 1e-3, 0.999), (1e4, 1e4, 0.1)],
)
def test_updates_keep_the_bound_exactly(dtype, narrow, weight, update, bound):
    keys = jax.random.split(jax.random.key(0))
    p = (weight * jax.random.normal(keys[0], (100_000,))).astype(dtype)
    u = (update * jax.random.normal(keys[1], p.shape)).astype(
        dtype if narrow else jnp.float32
    )

    def step(p, u, c):
        bounded = bounded_update(p, u, c)
        assert bounded.dtype == u.dtype
        return optax.apply_updates(p, bounded)

    after = jax.jit(step)(p, u, jnp.float32(bound))
    after, free = np.float32(after), np.float32(p) + np.float32(u)
    limit = np.float32(bound)
    assert np.abs(after).max() <= limit
    # What was to be clipped lies below the bound by the rounding of the dtype, and of
    # the update, which is as coarse as the weight that it takes back: 2^-24 of it for
    # the step, and as much for the sum, below a target that is 2^-22 off already.
    coarse = float(jnp.finfo(dtype).eps) * bound
    if narrow and dtype != jnp.float32:
        # In its own eps: 2 for the target, 1/2 for the rounding of the step.
        step_eps = 2.5 * float(jnp.finfo(dtype).eps)
        coarse = coarse + step_eps * (np.abs(np.float32(p)) + bound)
    else:
        coarse = coarse + 2.0**-21 * np.maximum(np.abs(np.float32(p)), bound)
    clipped = np.abs(free) > limit * 1.01
    assert clipped.any()
    assert (np.abs(after) >= bound - 1.01 * coarse)[clipped].all()


def test_narrow_weights_stay_at_the_bound_once_there():
    # As in training: most weights are inside, and steps are small. What leads out of
    # the bound ends at the largest bfloat16 within it, or one below, and then there.
    p = jax.random.uniform(jax.random.key(0), (10_000,), minval=-0.7, maxval=0.7)
    p, bound = p.astype(jnp.bfloat16), jnp.float32(0.703)
    top = np.float32(0.69921875)  # the largest bfloat16 that is not above
    u = jnp.where(p >= 0, 0.3, -0.3).astype(jnp.bfloat16)
    step = jax.jit(lambda p: optax.apply_updates(p, bounded_update(p, u, bound)))
    after = step(p)
    leaves = np.abs(np.float32(p)) > 0.41
    assert set(np.unique(np.abs(np.float32(after)[leaves]))) <= {top - 2**-8, top}
    again = step(after)
    np.testing.assert_array_equal(np.abs(np.float32(again))[leaves], top)


def test_updates_inside_the_bound_are_untouched():
    p, u = jnp.array([0.1, -0.2]), jnp.array([0.3, 1e-9])
    np.testing.assert_array_equal(bounded_update(p, u, 1.0), u)
    np.testing.assert_array_equal(bounded_update(p, u, jnp.inf), u)
