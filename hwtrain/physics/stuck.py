"""Stuck devices: their conductance is one end of the range, whatever is written."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain.physics.random import uniform

HEALTHY, AT_G_MIN, AT_G_MAX = range(3)
"""The states of a device."""


def draw_stuck(
    key: jax.Array, shape: tuple[int, ...], *, at_g_min: float, at_g_max: float
) -> jax.Array:
    r"""Draws which devices are stuck, each by itself.

    .. math::
        P(\text{stuck at } g_\text{min}) = p_0, \qquad
        P(\text{stuck at } g_\text{max}) = p_1

    >>> states = draw_stuck(jax.random.key(0), (1000,), at_g_min=0.1, at_g_max=0.02)
    >>> jnp.bincount(states).tolist()
    [876, 107, 17]

    Args:
      key: a JAX key.
      shape: shape of the devices.
      at_g_min: p0, the share stuck at g_min. Zero turns it off.
      at_g_max: p1, the share stuck at g_max. Zero turns it off.

    Returns:
      `uint8`: 0 healthy, 1 stuck at g_min, 2 stuck at g_max.

    References:
      Chen et al., RRAM defect modeling and failure analysis based on march test and a
      novel squeeze-search scheme, IEEE Transactions on Computers 2015.
    """
    u = uniform(key, shape)
    low, high = u < at_g_min, u >= 1 - at_g_max
    return jnp.where(low, AT_G_MIN, jnp.where(high, AT_G_MAX, HEALTHY)).astype("uint8")


def with_stuck(
    g: jax.Array, stuck: jax.Array, *, g_min: ArrayLike, g_max: ArrayLike
) -> jax.Array:
    """Returns conductances in which stuck devices have theirs.

    >>> g = with_stuck(jnp.array([7.0, 7.0, 7.0]), jnp.array([0, 1, 2], "uint8"),
    ...                g_min=0.1, g_max=25.0)
    >>> print(g)
    [ 7.   0.1 25. ]

    Args:
      g: conductances, in µS.
      stuck: the states of the devices, of `draw_stuck`.
      g_min: the smallest conductance, in µS.
      g_max: the largest, in µS.
    """
    ends = jnp.where(stuck == AT_G_MIN, g_min, g_max).astype(g.dtype)
    return jnp.where(stuck == HEALTHY, g, ends)
