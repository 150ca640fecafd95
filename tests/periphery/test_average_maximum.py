"""The running average of the largest inputs, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.periphery._average_maximum import record_maxima
from hwtrain.periphery._range_gradient import PROBE_SCALE


def test_the_probe_gets_sums_of_the_vectors_maxima_and_nothing_else_a_gradient():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 2, 1, 4)).astype(np.float32)
    average = np.array([[0.5, 2.0, 1.0], [4.0, 1.5, 3.0]], np.float32)
    d = rng.normal(size=x.shape).astype(np.float32)
    _, pull = jax.vjp(record_maxima, x, average, jnp.zeros((2, 3, 6)))
    d_x, d_average, d_probe = pull(jnp.asarray(d))
    np.testing.assert_array_equal(d_x, d)
    np.testing.assert_array_equal(d_average, 0)
    largest = np.abs(x).max(-1) / average  # [3, 5, 2, 3]
    count = np.full((2, 3), 15)
    expected = [count, count, largest.sum((0, 1)), np.square(largest).sum((0, 1))]
    sums = np.asarray(d_probe) / PROBE_SCALE
    np.testing.assert_allclose(sums[..., :4], np.stack(expected, -1), rtol=1e-6)
    np.testing.assert_array_equal(sums[..., 4:], 0)
