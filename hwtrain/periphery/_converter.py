"""Digital-to-analog and analog-to-digital conversion: rounding and clipping.

The gradient passes straight through rounding, and is zero beyond the bound.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hwtrain._arrays.derivatives import straight_through
from hwtrain._arrays.rounding import round_to

# Level times step can exceed the bound by a rounding of float32.
_TOLERANCE = 1 + 1e-6


class Converter(NamedTuple):
    """A DAC or an ADC.

    Attributes:
      bound: full scale, in normalised units; `None` for no clipping and no rounding.
      res: step relative to the full range of twice the bound; `None` for no rounding.
      stochastic: whether to round up or down at random, with the right mean.
    """

    bound: float | None = None
    res: float | None = None
    stochastic: bool = False

    @property
    def step(self) -> float | None:
        """Distance between levels, in normalised units; `None` for no levels."""
        if self.bound is None or self.res is None:
            return None
        return 2 * self.bound * self.res

    @property
    def bits(self) -> float | None:
        """Number of bits, however the levels were given; `None` for no levels.

        >>> Converter(bound=10.0, res=1 / 510).bits
        9.0
        """
        if self.bound is None or self.res is None:
            return None
        return math.log2(1 / self.res + 2)


def from_bits(bits: int) -> float:
    """Returns the resolution of a converter with `bits` bits.

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
    within and at the bound, and 0 beyond.

    >>> convert(jnp.array([0.3, -2.0]), Converter(bound=1.0, res=1 / 8))
    Array([ 0.25, -1.  ], dtype=float32)

    Args:
      x: values in normalised units, of any shape.
      converter: the converter; `Converter()` is ideal.
      uniform: numbers in [0, 1) of the shape of `x`, for stochastic rounding; `None`
        for rounding to the nearest level.
    """
    return saturate(round_to_level(x, converter, uniform=uniform), converter.bound)


def round_to_level(
    x: jax.Array, converter: Converter, *, uniform: jax.Array | None = None
) -> jax.Array:
    """Rounds to the levels of a converter, even beyond its bound.

    >>> round_to_level(jnp.array([0.125, 3.1]), Converter(bound=1.0, res=1 / 8))
    Array([0., 3.], dtype=float32)

    Args:
      x: values in normalised units, of any shape.
      converter: the converter; without levels, nothing is rounded.
      uniform: as in `convert`.
    """
    return x if converter.step is None else round_to(x, converter.step, uniform)


def rounding_deviation(x: jax.Array, step: float) -> jax.Array:
    r"""Returns the standard deviation of stochastic rounding.

    .. math:: \Delta \sqrt{p (1 - p)}, \qquad
        p = x / \Delta - \lfloor x / \Delta \rfloor

    >>> print(rounding_deviation(jnp.array([0.5, 1.0]), 1.0))
    [0.5 0. ]

    Args:
      x: values, of any shape.
      step: distance between levels.
    """
    share = x / step - jnp.floor(x / step)
    return step * jnp.sqrt(share * (1 - share))


def saturate(x: jax.Array, bound: float | None) -> jax.Array:
    """Clips to plus or minus a bound; the gradient passes at the bound, not beyond.

    >>> saturate(jnp.array([0.5, 3.0]), 2.0)
    Array([0.5, 2. ], dtype=float32)

    Args:
      x: values, of any shape.
      bound: the bound, positive, in units of `x`; `None` for no clipping.
    """
    if bound is None:
        return x
    clipped = jnp.clip(jax.lax.stop_gradient(x), -bound, bound)
    return jnp.where(exceeds(x, bound), clipped, straight_through(x, clipped))


def exceeds(x: jax.Array, bound: float) -> jax.Array:
    """Returns where values exceed a bound by more than a rounding error."""
    return jnp.abs(x) > bound * _TOLERANCE
