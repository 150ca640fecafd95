"""What distorts the outputs of a crossbar before its ADC."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain.physics.tiling import over_batch


def asymmetry(x: jax.Array, share: float) -> jax.Array:
    r"""Weakens negative values.

    .. math:: x' = x\,(1 - a\,[x < 0])

    >>> asymmetry(jnp.array([1.0, -1.0]), 0.25)
    Array([ 1.  , -0.75], dtype=float32)

    Args:
      x: values, of any shape.
      share: a. Zero turns it off.
    """
    return x if share == 0 else jnp.where(x < 0, (1 - share) * x, x)


def voltage_offset(
    y: jax.Array,
    x: jax.Array,
    *,
    offset: ArrayLike = 0.0,
    w_min: float = -1.0,
    r_series: float = 0.0,
) -> jax.Array:
    r"""Outputs read at an offset voltage and through a series resistance.

    .. math::
        y' = \frac{(1 - v)(y + y_0)}{1 + \rho |y + y_0|}
           - \frac{(1 + v)\, y_0}{1 + \rho |y_0|}, \qquad
        y_0 = -w_\text{min} \sum_j x_j

    The current of the devices that hold :math:`w_\text{min}` is the reference that is
    subtracted.

    >>> y, x = jnp.full((1, 1, 1, 1), 2.0), jnp.ones((1, 1, 1, 3))
    >>> print(voltage_offset(y, x, w_min=0.0, r_series=0.5).item())
    1.0

    Args:
      y: `[..., row tiles, column tiles, columns]`, in normalised units.
      x: `[..., row tiles, column tiles or 1, rows]`, the inputs that made them.
      offset: v, relative to the read voltage, broadcastable against `y`.
      w_min: the weight of a device that is off.
      r_series: rho, the series resistance in normalised units. Zero turns it off.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    reference = -w_min * jnp.sum(x, axis=-1, keepdims=True)
    total = y + reference
    offset = jnp.asarray(over_batch(offset, y), y.dtype)
    upper = (1 - offset) * total / (1 + r_series * jnp.abs(total))
    return upper - (1 + offset) * reference / (1 + r_series * jnp.abs(reference))


def nonlinearity(
    y: jax.Array,
    bound: float,
    *,
    strength: ArrayLike = 0.0,
    mean_strength: ArrayLike = 0.0,
    r_series: float = 0.0,
    slope_calibration: float = 0.0,
) -> jax.Array:
    r"""Outputs that saturate, and the factor that calibrates their slope.

    .. math::
        y' = \frac{F\, y}{1 + |n y|}, \qquad n = \frac{\nu}{b}, \qquad
        F = \left(1 + \left(\frac{\bar\nu}{b} + \rho\right) \kappa\, b\right)^2

    >>> print(nonlinearity(jnp.array([2.0]), 2.0, strength=1.0, mean_strength=1.0))
    [1.]

    Args:
      y: outputs in normalised units.
      bound: b, the bound of the ADC.
      strength: nu, broadcastable against `y`.
      mean_strength: nu of the calibration, the mean over the outputs of a tile. Zero
        with `strength` zero turns it off.
      r_series: rho, the series resistance in normalised units.
      slope_calibration: kappa. Zero turns the calibration off: F = 1.
    """
    distorted = y / (1 + jnp.abs(over_batch(strength, y) * y) / bound)
    if slope_calibration == 0:
        return distorted
    mean = over_batch(jnp.asarray(mean_strength), y)
    slope = (mean / bound + r_series) * slope_calibration * bound
    return jnp.square(1 + slope) * distorted
