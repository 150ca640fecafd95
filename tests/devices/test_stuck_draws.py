"""Stuck devices: shares, independence, and draws that a larger share includes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.devices.stuck import draw_stuck, with_stuck

N = 200_000


@pytest.mark.parametrize("p0, p1", [(0.1, 0.0), (0.0, 0.03), (0.09, 0.0175), (0, 0)])
def test_shares_are_those_asked_for(p0, p1):
    states = draw_stuck(jax.random.key(3), (N,), at_g_min=p0, at_g_max=p1)
    counts = np.bincount(np.asarray(states), minlength=3)
    for count, p in zip(counts, (1 - p0 - p1, p0, p1)):
        # Five standard deviations of a binomial number.
        assert abs(count - N * p) <= 5 * np.sqrt(N * p * (1 - p)), (count, p)


def test_devices_are_drawn_by_themselves():
    a, b = (
        np.asarray(draw_stuck(jax.random.key(k), (N,), at_g_min=0.5, at_g_max=0.0))
        for k in (0, 1)
    )
    limit = 5 / np.sqrt(N)
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < limit


def test_it_is_the_uniform_number_of_jax():
    key = jax.random.key(5)
    u = np.asarray(jax.random.uniform(key, (50, 40)))
    expected = np.where(u < 0.2, 1, np.where(u >= np.float32(0.7), 2, 0))
    states = draw_stuck(key, (50, 40), at_g_min=0.2, at_g_max=0.3)
    np.testing.assert_array_equal(states, expected)


def test_all_or_nothing():
    g = jnp.full((30,), 7.0)
    for p0, p1, expected in ((1, 0, 0.5), (0, 1, 25.0), (0, 0, 7.0)):
        states = draw_stuck(jax.random.key(0), (30,), at_g_min=p0, at_g_max=p1)
        np.testing.assert_array_equal(
            with_stuck(g, states, g_min=0.5, g_max=25.0), expected
        )
