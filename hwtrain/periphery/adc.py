"""The analog-to-digital converter of a tile's outputs."""

import dataclasses

import numpy as np

from hwtrain._parts.cost import Cost
from hwtrain._parts.part import Part
from hwtrain.periphery._converter import (
    Converter,
    exceeds,
    round_to_level,
    rounding_deviation,
    saturate,
)
from hwtrain.periphery.input_range import PROBE


class Adc(Part):
    r"""Rounds outputs to the levels of the ADC, and clips them to its full scale.

    .. math:: \hat y = \mathrm{clip}(\Delta\,\mathrm{round}(y / \Delta), -b, b), \qquad
        \Delta = 2\, b\, res

    The gradient passes straight through the rounding, but not through the clipping.
    With a learned input range, clipped outputs are counted in the range's probe.
    """

    whole = True
    draws = "read"
    bound: float | None = None
    """Full scale, in normalised units; `None` clips nothing, and has no levels."""
    res: float | None = None
    """Step relative to the full range; `None` for no levels."""
    stochastic: bool = False
    """Round up or down at random, with the right mean."""

    @property
    def converter(self) -> Converter:
        """The same as a `hwtrain.periphery._converter.Converter`."""
        return Converter(self.bound, self.res, self.stochastic)

    def draws_at(self, when):
        """Whether it rounds stochastically."""
        return self.stochastic and super().draws_at(when)

    @property
    def unrounded(self):
        """The same without rounding."""
        return dataclasses.replace(self, res=None, stochastic=False)

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

    def describe(self):
        """Returns its levels and full scale."""
        bits, bound = self.converter.bits, self.bound
        full_scale = "" if bound is None else f" to {bound:g}"
        return f"ADC{full_scale}" + ("" if bits is None else f", {bits:.3g} bits")

    def describe_in(self, ctx):
        """Returns its table cells: its description, and its bits."""
        bits = self.converter.bits
        cells = {} if bits is None else {"bits": f"ADC {bits:.3g}"}
        return {ctx.column: self.describe(), **cells}

    def cost(self, ctx):
        """Returns the cost of its conversions, and of the ADCs."""
        counts, constants = ctx.counts, ctx.constants
        energy = constants.conversion_energy_fj
        if constants.adc_energy_fj_per_step and counts.conversions:
            energy += constants.adc_energy_fj_per_step * 2**ctx.out_bits
        time = counts.columns_in_turn * constants.conversion_time_ns
        if constants.overlapped:
            time = max(time - constants.read_time_ns, 0.0)
        return Cost(
            energy_fj=counts.conversions * energy,
            latency_ns=counts.steps * counts.converted_passes * time,
            area_um2=counts.adcs * constants.adc_area_um2,
        )

    def proof(self, ctx):
        """Declares its measured effect: rounding, and clipping at its bound."""
        step, bound = self.converter.step, self.bound
        if step is not None and bound is not None:
            ctx.differs("ADC rounding", self.unrounded)

            def levels(x, tile):
                return np.clip(step * np.rint(tile.multiply(x) / step), -bound, bound)

            def unrounded(x, tile):
                return np.clip(tile.multiply(x), -bound, bound)

            nearest = dataclasses.replace(self, stochastic=False)
            within = {"rest": unrounded, "outputs": bound / 3}
            ctx.responds(levels, "ADC rounding", nearest, **within)
        if self.stochastic and step is not None and bound is not None:
            ctx.deviates(
                lambda x: rounding_deviation(ctx.product(x, ctx.w), step),
                "out_sto_round",
                of=dataclasses.replace(
                    self, bound=1e4 * bound, res=step / (2e4 * bound)
                ),
                pooled=True,
            )
        if bound is not None:
            ctx.differs_beyond(bound, "out_bound", Adc(bound=bound))
            ctx.responds(
                lambda x, tile: np.clip(tile.multiply(x), -bound, bound),
                "out_bound",
                Adc(bound=bound),
                outputs=bound,
            )
