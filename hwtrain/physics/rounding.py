"""Weights on a grid of levels. The gradient passes straight through the rounding."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain.physics.modifiers import modified, straight_through
from hwtrain.physics.random import uniform


def resolution(res: float) -> float:
    """Returns the step relative to the range; a number of steps is inverted.

    >>> resolution(0.25), resolution(4)
    (0.25, 0.25)

    Args:
      res: the step relative to the range, or, above 1, the number of steps.
    """
    return 1 / res if res > 1 else res


def round_to(x: jax.Array, step: ArrayLike, u: jax.Array | None = None) -> jax.Array:
    r"""Rounds to a multiple of the step; the gradient passes straight through.

    .. math:: \hat x = \Delta \left\lfloor \frac{x}{\Delta} \right\rceil
        \quad\text{or}\quad
        \hat x = \Delta \left\lfloor \frac{x}{\Delta} + u \right\rfloor

    The first rounds half to even. The second is stochastic, with mean x for u uniform
    in [0, 1).

    >>> print(round_to(jnp.array([0.5, 1.5, 1.6]), 1.0))
    [0. 2. 2.]
    >>> print(round_to(jnp.array([0.5, 1.5, 1.6]), 1.0, jnp.array([0.6, 0.4, 0.3])))
    [1. 1. 1.]

    Args:
      x: values, of any shape.
      step: the step, positive, in units of `x`, broadcastable against it.
      u: numbers in [0, 1) of the shape of `x`; `None` rounds to the nearest.
    """
    step = jnp.asarray(step)
    level = x / step
    rounded = jnp.round(level) if u is None else jnp.floor(level + u)
    return step * straight_through(level, jax.lax.stop_gradient(rounded))


def discretize(
    w: jax.Array,
    w_max: ArrayLike,
    *,
    res: float,
    key: jax.Array | None = None,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Rounds weights to levels that are spread evenly over -A to A.

    .. math:: w' = \Delta \left\lfloor \frac{w}{\Delta} \right\rceil, \qquad
        \Delta = 2 A\, \text{res}

    >>> print(discretize(jnp.array([0.1, 0.3, -1.0]), 1.0, res=0.25))
    [ 0.   0.5 -1. ]

    Args:
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`; where it is zero, 1 is
        taken.
      res: the step relative to the range 2 A; above 1, the number of steps.
      key: rounds stochastically with this JAX key; `None` rounds half to even.
      reparameterized: differentiate through A, which the step depends on; the
        rounding itself always passes the gradient.

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

    The result lies in -c to c, whatever A is.

    >>> print(dorefa(jnp.array([0.0, 0.5, -1.0]), 1.0, res=0.1, clip=0.6))
    [ 0.   0.4 -0.6]

    Args:
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`; where it is zero, 1 is
        taken.
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
