"""Drift compensation: a digital factor that undoes the mean drift of a tile."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# A tile of zeros has no response, and its factor would be infinite.
_RESPONSE_FLOOR = 1e-4


def response(y: jax.Array, *, per_column: bool = False) -> jax.Array:
    r"""Returns how strongly a tile answers to one input after another.

    .. math:: R = \max(\overline{|y|},\ 10^{-4})

    >>> print(response(jnp.array([[0.5, -1.5], [1.0, 1.0]])))
    1.0

    Args:
      y: `[..., rows, columns]`, the tile's outputs for the one-hot vectors, one row
        driven at a time. Without noise and converters these are its weights: the
        target weights give the exact reference.
      per_column: the mean over the rows of each column, or over both.

    Returns:
      `[...]`, or `[..., columns]` per column.
    """
    mean = jnp.mean(jnp.abs(y), axis=-2 if per_column else (-2, -1))
    return jnp.maximum(mean, _RESPONSE_FLOOR)


def gain(baseline: ArrayLike, now: ArrayLike) -> jax.Array:
    r"""Returns what a tile's output is multiplied by.

    .. math:: \alpha = R_0 / R(t)

    >>> print(gain(1.0, 0.8))
    1.25

    Args:
      baseline: the response just after programming, or of the target weights.
      now: the response at the time of use.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """
    return jnp.asarray(baseline) / now
