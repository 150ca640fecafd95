"""Weights as conductances of device pairs."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# An all-zero tensor has no largest weight; this floor keeps its scale finite.
_W_MAX_FLOOR = 1e-7


def scale_ratio(
    weights: jax.Array, g_range: float, *, per_column: bool = False
) -> jax.Array:
    r"""Returns the conductance of a unit weight.

    .. math:: k = \frac{g_\text{max} - g_\text{min}}{\max |w|}

    >>> print(scale_ratio(jnp.array([[0.5, -1.0]]), 25.0))
    25.0

    Args:
      weights: `[..., columns]`.
      g_range: g_max - g_min, in µS.
      per_column: a scale for each column instead of one for the tensor.

    Returns:
      In µS per unit of weight: `[]`, or `[1, ..., columns]` for each column. Of a
      tensor of zeros, the range divided by 1e-7.
    """
    axes = tuple(range(weights.ndim - 1)) if per_column else None
    w_max = jnp.max(jnp.abs(weights), axis=axes, keepdims=per_column)
    return g_range / jnp.maximum(w_max, _W_MAX_FLOOR)


def to_pair(
    weights: jax.Array, scale: ArrayLike, *, g_min: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    r"""Returns a weight as the difference of two conductances.

    .. math:: g^\pm = g_\text{min} + \max(\pm k w, 0)

    >>> g_pos, g_neg = to_pair(jnp.array([0.5, -1.0]), 25.0)
    >>> print(g_pos, g_neg)
    [12.5  0. ] [ 0. 25.]

    Args:
      weights: weights of any shape.
      scale: k, in µS per unit of weight, broadcastable against the weights.
      g_min: conductance of a device that is off, in µS.

    Returns:
      `(g_pos, g_neg)` in µS, each of the shape of the weights.
    """
    g = weights * scale
    return jnp.maximum(g, 0) + g_min, jnp.maximum(-g, 0) + g_min


def from_pair(g_pos: jax.Array, g_neg: jax.Array, scale: ArrayLike) -> jax.Array:
    r"""Returns the weights of conductance pairs.

    .. math:: w = (g^+ - g^-) / k

    >>> print(from_pair(jnp.array([12.5, 0.0]), jnp.array([0.0, 25.0]), 25.0))
    [ 0.5 -1. ]

    Args:
      g_pos: positive conductances, in µS.
      g_neg: negative conductances, in µS.
      scale: k, in µS per unit of weight, broadcastable against the conductances.
    """
    return (g_pos - g_neg) / scale
