"""The digital-to-analog converter of a tile's inputs."""

import dataclasses

import jax.numpy as jnp

from hwtrain._parts.cost import Cost
from hwtrain._parts.part import Part
from hwtrain.periphery._converter import Converter, convert, rounding_deviation


class Dac(Part):
    r"""Rounds inputs to the levels of the DAC, and clips them to its full scale.

    .. math:: \hat x = \mathrm{clip}(\Delta\,\mathrm{round}(x / \Delta), -b, b), \qquad
        \Delta = 2\, b\, res

    The gradient passes straight through the rounding, but not through the clipping.
    """

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

    def runs_whole(self) -> bool:
        """Whether a value is converted alike in every window of a convolution."""
        return not self.stochastic

    def draws_at(self, when):
        """Whether it rounds stochastically."""
        return self.stochastic and super().draws_at(when)

    def around(self, inner, x, ctx):
        """Converts the inputs."""
        u = None
        if self.stochastic:
            u = ctx.uniform("input_stochastic_rounding", ctx.crossbar.inputs_of(x)[0])
        return inner(convert(x, self.converter, uniform=u))

    def describe(self):
        """Returns its levels and full scale."""
        bits, bound = self.converter.bits, self.bound
        full_scale = "" if bound is None else f" to {bound:g}"
        return f"DAC{full_scale}" + ("" if bits is None else f", {bits:.3g} bits")

    def describe_in(self, ctx):
        """Returns its table cells: its description, bits, and where it clips inputs."""
        bits, cells = self.converter.bits, {ctx.column: self.describe()}
        if bits is not None:
            cells["bits"] = f"DAC {bits:.3g}"
        forward = ctx.weight.hardware.forward
        fitted = ctx.weight.ranged or ctx.weight.hardware.dynamic
        if not fitted and forward.noise_management == "none":
            cells["input range"] = f"none: inputs are cut at {self.bound:g}"
        return cells

    def cost(self, ctx):
        """Returns the cost of the rows that it drives, and of its drivers."""
        return Cost(
            energy_fj=ctx.counts.row_drives * ctx.constants.row_energy_fj,
            area_um2=ctx.counts.drivers * ctx.constants.row_area_um2,
        )

    def proof(self, ctx):
        """Declares its measured effect: rounding to its levels."""
        ctx.differs("DAC")
        to_nearest = dataclasses.replace(self, stochastic=False)
        step = self.converter.step
        if self.stochastic and step is not None and self.bound is not None:

            def deviation(x):
                each = rounding_deviation(x, step)
                return jnp.sqrt(ctx.product(jnp.square(each), jnp.square(ctx.w)))

            # The same levels, and more of them, so that no input is clipped.
            wide = dataclasses.replace(
                self, bound=1e4 * self.bound, res=step / (2e4 * self.bound)
            )
            ctx.deviates(deviation, "inp_sto_round", of=wide, shared=True, pooled=True)
        if self.bound is not None:
            ctx.clips(self.bound, "DAC", of=Dac(bound=self.bound))
        if step is not None:
            ctx.rounds(step, "DAC levels", of=to_nearest)
