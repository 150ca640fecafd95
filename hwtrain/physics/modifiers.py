"""Noise on weights. The gradient passes straight through every modifier."""

import jax
from jax.typing import ArrayLike

from hwtrain.physics.random import normal


def add_normal(
    key: jax.Array, w: jax.Array, w_max: ArrayLike, *, std_dev: ArrayLike
) -> jax.Array:
    r"""Adds normal noise, relative to the largest weight.

    .. math:: w' = w + \sigma A \xi

    >>> import jax.numpy as jnp
    >>> w = add_normal(jax.random.key(0), jnp.zeros(10_000), 2.0, std_dev=0.1)
    >>> print(f"{w.std():.2f}")
    0.20

    Args:
      key: a JAX key.
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`.
      std_dev: standard deviation relative to A. Zero turns the noise off.

    Returns:
      The noisy weights, of the shape and dtype of `w`.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """
    noise = std_dev * w_max * normal(key, w.shape)
    return w + jax.lax.stop_gradient(noise).astype(w.dtype)


def mult_normal(key: jax.Array, w: jax.Array, *, std_dev: ArrayLike) -> jax.Array:
    r"""Multiplies by one plus normal noise.

    .. math:: w' = w (1 + \sigma \xi)

    >>> import jax.numpy as jnp
    >>> w = mult_normal(jax.random.key(0), jnp.full(10_000, 2.0), std_dev=0.1)
    >>> print(f"{w.std():.2f}")
    0.20

    Args:
      key: a JAX key.
      w: weights, of any shape.
      std_dev: standard deviation, relative to each weight. Zero turns the noise off.

    Returns:
      The noisy weights, of the shape and dtype of `w`.
    """
    noise = std_dev * w * normal(key, w.shape)
    return w + jax.lax.stop_gradient(noise).astype(w.dtype)
