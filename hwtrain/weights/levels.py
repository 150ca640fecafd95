"""Rounding of weights to levels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays.derivatives import modified
from hwtrain._arrays.random import uniform
from hwtrain._arrays.rounding import resolution, round_to


def discretize(
    w: jax.Array,
    w_max: ArrayLike,
    *,
    res: float,
    key: jax.Array | None = None,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Rounds weights to evenly spaced levels between -A and A.

    .. math:: w' = \Delta \left\lfloor \frac{w}{\Delta} \right\rceil, \qquad
        \Delta = 2 A\, \text{res}

    >>> print(discretize(jnp.array([0.1, 0.3, -1.0]), 1.0, res=0.25))
    [ 0.   0.5 -1. ]

    Args:
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`; zero is replaced by 1.
      res: the step relative to the range 2 A; above 1, the number of steps.
      key: rounds stochastically with this JAX key; `None` rounds half to even.
      reparameterized: differentiate through A, on which the step depends; the rounding
        itself always passes the gradient.

    Returns:
      The rounded weights, of the shape and dtype of `w`.

    References:
      Gupta et al., Deep learning with limited numerical precision, ICML 2015.
    """
    w_max = jnp.asarray(w_max, jnp.float32)
    step = 2 * jnp.where(w_max > 0, w_max, 1) * resolution(res)
    u = None if key is None else uniform(key, w.shape)
    rounded = round_to(w.astype(jnp.float32), step, u)
    return modified(w, rounded, reparameterized=reparameterized)


def dorefa(
    w: jax.Array,
    w_max: ArrayLike,
    *,
    res: float,
    clip: float = 0.6,
    key: jax.Array | None = None,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Squeezes weights by a hyperbolic tangent and rounds them.

    .. math:: w' = \text{res} \left\lfloor
        \frac{c \tanh w}{\text{res} \tanh A} \right\rceil

    The result lies between -c and c for any A.

    >>> print(dorefa(jnp.array([0.0, 0.5, -1.0]), 1.0, res=0.1, clip=0.6))
    [ 0.   0.4 -0.6]

    Args:
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`; zero is replaced by 1.
      res: the step, in units of the result; above 1, its inverse.
      clip: c, the largest result.
      key: rounds stochastically with this JAX key; `None` rounds half to even.
      reparameterized: differentiate through the hyperbolic tangents; the rounding
        itself always passes the gradient.

    Returns:
      The rounded weights, of the shape and dtype of `w`.

    References:
      Zhou et al., DoReFa-Net: training low bitwidth convolutional neural networks with
      low bitwidth gradients, 2016.
    """
    w_max = jnp.asarray(w_max, jnp.float32)
    scale = clip / jnp.tanh(jnp.where(w_max > 0, w_max, 1))
    u = None if key is None else uniform(key, w.shape)
    squeezed = scale * jnp.tanh(w.astype(jnp.float32))
    rounded = round_to(squeezed, resolution(res), u)
    return modified(w, rounded, reparameterized=reparameterized)
