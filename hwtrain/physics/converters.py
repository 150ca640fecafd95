"""Converters between digital and analog: DAC and ADC, their rounding and their bound.

The gradient passes straight through rounding, and is zero beyond the bound.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# Level times step can miss the bound by a rounding of float32.
_TOLERANCE = 1 + 1e-6


class Converter(NamedTuple):
    """A DAC or an ADC.

    Attributes:
      bound: full scale, in normalised units; `None` for no bound, and no levels.
      res: step relative to the full range of twice the bound; `None` for no levels.
      stochastic: whether it rounds up or down at random, so that the mean is right.
    """

    bound: float | None = None
    res: float | None = None
    stochastic: bool = False

    @property
    def step(self) -> float | None:
        """The distance of two levels, in normalised units; `None` for no levels."""
        if self.bound is None or self.res is None:
            return None
        return 2 * self.bound * self.res


def resolution(res: float) -> float:
    """Returns a resolution relative to the full range, which may be given as steps.

    >>> resolution(254), resolution(0.25)
    (0.003937007874015748, 0.25)

    Args:
      res: the resolution, or a number of steps if it is above 1.
    """
    return 1 / res if res > 1 else res


def from_bits(bits: int) -> float:
    """Returns the resolution of a converter of a number of bits.

    .. math:: res = 1 / (2^b - 2)

    >>> from_bits(8)
    0.003937007874015748
    """
    return 1 / (2**bits - 2)


def convert(
    x: jax.Array, converter: Converter, *, uniform: jax.Array | None = None
) -> jax.Array:
    r"""Rounds to the levels of a converter, then clips to its bound.

    .. math:: \hat x = \mathrm{clip}(\Delta\,\mathrm{round}(x / \Delta), -b, b), \qquad
        \Delta = 2\, b\, res

    Ties go to the even level. The gradient is that of clipping the rounded value: 1
    within the bound, also at it, and 0 beyond.

    >>> convert(jnp.array([0.3, -2.0]), Converter(bound=1.0, res=1 / 8))
    Array([ 0.25, -1.  ], dtype=float32)

    Args:
      x: values in normalised units, of any shape.
      converter: the converter; `Converter()` is ideal.
      uniform: numbers in [0, 1) of the shape of `x`, for stochastic rounding; `None`
        for rounding to the nearest level.
    """
    return saturate(round_to_level(x, converter.step, uniform=uniform), converter.bound)


def round_to_level(
    x: jax.Array, step: ArrayLike | None, *, uniform: jax.Array | None = None
) -> jax.Array:
    r"""Rounds to multiples of a step; the gradient is that of the identity.

    >>> round_to_level(jnp.array([0.125, 0.3]), 0.25)
    Array([0.  , 0.25], dtype=float32)

    Args:
      x: values, of any shape.
      step: the step, positive, in units of `x`; `None` for no rounding.
      uniform: numbers in [0, 1) of the shape of `x`, for stochastic rounding: up with
        a probability of the part above the lower level.
    """
    if step is None:
        return x
    level = jax.lax.stop_gradient(x) / step
    if uniform is None:
        rounded = jnp.round(level)
    else:
        rounded = jnp.floor(level + uniform)
    return straight_through(x, rounded * step)


def saturate(x: jax.Array, bound: ArrayLike | None) -> jax.Array:
    """Clips to plus or minus a bound; the gradient passes at the bound, not beyond.

    >>> saturate(jnp.array([0.5, 3.0]), 2.0)
    Array([0.5, 2. ], dtype=float32)

    Args:
      x: values, of any shape.
      bound: the bound, positive, in units of `x`; `None` for no clipping.
    """
    if bound is None:
        return x
    clipped = jax.lax.stop_gradient(jnp.clip(x, -bound, bound))
    return jnp.where(exceeds(x, bound), clipped, straight_through(x, clipped))


def exceeds(x: jax.Array, bound: ArrayLike) -> jax.Array:
    """Returns where values lie beyond a bound, by more than a rounding."""
    return jnp.abs(x) > bound * _TOLERANCE


def straight_through(x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns `value` with the gradient of `x`.

    >>> jax.grad(lambda x: straight_through(x, jnp.round(x)))(1.3)
    Array(1., dtype=float32, weak_type=True)
    """
    # The difference is exactly zero; x + (value - x) would be rounded.
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))
