"""Noise on a tile's outputs."""

import dataclasses

import jax
import jax.numpy as jnp

from hwtrain._arrays.tiling import over_batch
from hwtrain._parts.part import Part


class OutputNoise(Part):
    r"""Adds normal noise to the outputs, before the ADC.

    .. math:: y' = y + \sigma\, a\, |1 + \sigma_\text{chip}\, \zeta|\, \xi

    with :math:`\zeta` frozen for each output of a chip, and a = 1 or, per channel, the
    largest absolute weight of the output's column.
    """

    whole = True
    draws = ("read", "chip")
    sigma: float
    """Standard deviation, in normalised units."""
    spread: float = 0.0
    """Relative spread over the outputs of a chip. Zero turns the spread off."""

    per_channel: bool = False
    """Whether the deviation of an output is proportional to its largest weight."""

    def runs_whole(self):
        """Whether windows are not needed: the weights of columns are on tiles."""
        return not self.per_channel

    def draws_at(self, when):
        """Whether it draws; for a chip, only with a spread."""
        return super().draws_at(when) and (when != "chip" or self.spread > 0)

    def around(self, inner, x, ctx):
        """Adds the noise."""
        y = inner(x)
        if ctx.keys is None:
            return y
        of_chip = abs(1 + ctx.spread(self.spread, "output_noise_spread"))
        sigma = over_batch(self.sigma * of_chip * self._amplitude(ctx.w), y)
        return y + sigma * ctx.normal("output_noise", y.shape)

    def _amplitude(self, w):
        """Returns the largest weight of each column, `[..., columns]`, or 1."""
        if not self.per_channel:
            return 1.0
        return jnp.max(jnp.abs(jax.lax.stop_gradient(w)), axis=-3)

    def describe(self):
        """Returns its fields."""
        what = " x max|w| of the column" if self.per_channel else ""
        return f"output noise {self.sigma:g}{what}"

    def proof(self, ctx):
        """Declares its measured effect: the deviation, and its spread."""
        alike = dataclasses.replace(self, spread=0.0)
        ctx.differs("out_noise")
        sigma = self.sigma
        if self.per_channel:
            sigma = sigma * self._amplitude(ctx.w)
        ctx.deviates(sigma, "out_noise", of=alike)
        if self.spread > 0:
            ctx.differs("out_noise_std", alike)
            ctx.varies(self.sigma, self.spread, "out_noise_std")
