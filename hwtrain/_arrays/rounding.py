"""Rounding to levels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays.derivatives import straight_through


def resolution(res: float) -> float:
    """Returns the step relative to the range; inverts a number of steps.

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
      u: numbers in [0, 1) of the shape of `x`; `None` rounds to the nearest multiple.
    """
    step = jnp.asarray(step)
    level = x / step
    rounded = jnp.round(level) if u is None else jnp.floor(level + u)
    return step * straight_through(level, jax.lax.stop_gradient(rounded))
