"""Saturation of outputs before the ADC."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays.tiling import over_batch
from hwtrain._parts.part import Part


def saturating(
    y: jax.Array,
    bound: float,
    *,
    strength: ArrayLike = 0.0,
    mean_strength: ArrayLike = 0.0,
    r_series: float = 0.0,
    slope_calibration: float = 0.0,
) -> jax.Array:
    r"""Returns saturated outputs, with the slope calibrated.

    .. math::
        y' = \frac{F\, y}{1 + |n y|}, \qquad n = \frac{\nu}{b}, \qquad
        F = \left(1 + \left(\frac{\bar\nu}{b} + \rho\right) \kappa\, b\right)^2

    >>> print(saturating(jnp.array([2.0]), 2.0, strength=1.0, mean_strength=1.0))
    [1.]

    Args:
      y: outputs in normalised units.
      bound: b, the bound of the ADC.
      strength: nu, broadcastable against `y`.
      mean_strength: nu of the calibration, the mean over the outputs of a tile. Zero,
        with zero `strength`, turns saturation off.
      r_series: rho, the series resistance in normalised units.
      slope_calibration: kappa. Zero turns the calibration off: F = 1.
    """
    distorted = y / (1 + jnp.abs(over_batch(strength, y) * y) / bound)
    if slope_calibration == 0:
        return distorted
    mean = over_batch(jnp.asarray(mean_strength), y)
    slope = (mean / bound + r_series) * slope_calibration * bound
    return jnp.square(1 + slope) * distorted


class Saturation(Part):
    """Compresses outputs, the more the larger they are, before the ADC.

    `saturating` has the equation.
    """

    whole = True
    draws = "chip"
    strength: float
    """Strength at the bound of the ADC."""
    spread: float = 0.0
    """Relative spread over the outputs of a chip. Zero turns the spread off."""
    slope_calibration: float = 0.0
    """Distance from zero, relative to the bound, where the slope is calibrated to 1."""
    r_series: float = 0.0
    """Series resistance of the outputs, which the calibration compensates, too."""
    bound: float | None = None
    """The bound of the ADC; `None` saturates nothing."""

    def draws_at(self, when):
        """Whether it draws; for a chip, only with a spread."""
        return super().draws_at(when) and (when != "chip" or self.spread > 0)

    def around(self, inner, x, ctx):
        """Saturates the outputs."""
        y = inner(x)
        of_chip = abs(1 + ctx.spread(self.spread, "output_nonlinearity"))
        strength = self.strength * of_chip
        mean = strength
        if jnp.ndim(strength):
            real = over_batch(ctx.crossbar.real_outputs(strength), strength)
            mean = jnp.mean(strength, axis=-1, keepdims=True, where=real)
        return saturating(
            y,
            self.bound or np.inf,
            strength=strength,
            mean_strength=mean,
            r_series=self.r_series,
            slope_calibration=self.slope_calibration,
        )

    def describe(self):
        """Returns its fields."""
        return f"saturation {self.strength:g}"

    def proof(self, ctx):
        """Declares its measured effect: that each option changes outputs."""
        bound = self.bound or np.inf
        alike = dataclasses.replace(self, spread=0.0)
        plain = dataclasses.replace(alike, slope_calibration=0.0)

        def saturated(x, tile):
            y = tile.multiply(x)
            return y / (1 + self.strength / bound * np.abs(y))

        def calibrated(x, tile):
            slope = self.slope_calibration * (self.strength + self.r_series * bound)
            return (1 + slope) ** 2 * saturated(x, tile)

        def deviation(x):
            y = ctx.product(x, ctx.w)
            nodes, shares = np.polynomial.hermite_e.hermegauss(40)
            square = 0
            for node, share in zip(nodes, shares / shares.sum()):
                n = self.strength / bound * abs(1 + self.spread * node)
                off = y / (1 + n * abs(y)) - y / (1 + self.strength / bound * abs(y))
                square += share * off**2
            return jnp.sqrt(square)

        if self.strength > 0:
            ctx.differs("out_nonlinearity")
            if np.isfinite(bound):
                ctx.responds(saturated, "out_nonlinearity", plain, outputs=bound)
        if self.spread > 0:
            ctx.differs("out_nonlinearity_std", alike)
            if np.isfinite(bound):
                spread = dataclasses.replace(self, slope_calibration=0.0)
                ctx.spreads(deviation, "out_nonlinearity_std", of=spread, alike=plain)
        if self.slope_calibration > 0:
            uncalibrated = dataclasses.replace(self, slope_calibration=0.0)
            ctx.differs("slope_calibration", uncalibrated)
            rest = {"rest": saturated, "outputs": bound}
            ctx.responds(calibrated, "slope_calibration", alike, **rest)
