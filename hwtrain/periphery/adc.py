"""The converter of a tile's outputs."""

from hwtrain._parts.part import Part
from hwtrain.periphery.range import PROBE
from hwtrain.physics.converters import Converter, exceeds, round_to_level, saturate


class Adc(Part):
    r"""Rounds outputs to the levels of the ADC, and clips them to its full scale.

    .. math:: \hat y = \mathrm{clip}(\Delta\,\mathrm{round}(y / \Delta), -b, b), \qquad
        \Delta = 2\, b\, res

    The gradient passes straight through the rounding, and not through the clipping.
    Where an input range is learned, it counts what it clips in the range's probe.
    """

    whole = True
    draws = "read"
    bound: float | None = None
    """Full scale, in normalised units; `None` clips nothing, and has no levels."""
    res: float | None = None
    """Step relative to the full range; `None` for no levels."""
    stochastic: bool = False
    """Round up or down at random, so that the mean is right."""

    @property
    def converter(self) -> Converter:
        """The same, as `hwtrain.physics.converters` takes it."""
        return Converter(self.bound, self.res, self.stochastic)

    def draws_at(self, when):
        """Whether it rounds at random."""
        return self.stochastic and super().draws_at(when)

    def around(self, inner, x, ctx):
        """Converts the outputs."""
        y = inner(x)
        u = None
        if self.stochastic:
            u = ctx.uniform("output_stochastic_rounding", y.shape)
        y = round_to_level(y, self.converter, uniform=u)
        if self.bound is None:
            return y
        if ctx.searching:
            ctx.note("clipped", exceeds(y, self.bound) & ctx.crossbar.real_outputs(y))
            return y
        if PROBE.name in ctx.leaves:
            y = ctx.crossbar.counted(y, ctx.leaves[PROBE.name], self.bound)
        return saturate(y, self.bound)
