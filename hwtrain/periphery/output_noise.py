"""Noise on a tile's outputs."""

import dataclasses

from hwtrain._arrays.tiling import over_batch
from hwtrain._parts.part import Part


class OutputNoise(Part):
    r"""Adds normal noise to the outputs, before the ADC.

    .. math:: y' = y + \sigma\, |1 + \sigma_\text{chip}\, \zeta|\, \xi

    with :math:`\zeta` frozen for each output of a chip.
    """

    whole = True
    draws = ("read", "chip")
    sigma: float
    """Standard deviation, in normalised units."""
    spread: float = 0.0
    """Relative spread over the outputs of a chip. Zero turns the spread off."""

    def draws_at(self, when):
        """Whether it draws; for a chip, only with a spread."""
        return super().draws_at(when) and (when != "chip" or self.spread > 0)

    def around(self, inner, x, ctx):
        """Adds the noise."""
        y = inner(x)
        if ctx.keys is None:
            return y
        of_chip = abs(1 + ctx.spread(self.spread, "output_noise_spread"))
        sigma = over_batch(self.sigma * of_chip, y)
        return y + sigma * ctx.normal("output_noise", y.shape)

    def describe(self):
        """Returns its fields."""
        return f"output noise {self.sigma:g}"

    def proof(self, ctx):
        """Declares its measured effect: the deviation, and its spread."""
        alike = dataclasses.replace(self, spread=0.0)
        ctx.differs("out_noise")
        ctx.deviates(self.sigma, "out_noise", of=alike)
        if self.spread > 0:
            ctx.differs("out_noise_std", alike)
            ctx.varies(self.sigma, self.spread, "out_noise_std")
