"""Positive and negative inputs in two passes of a tile."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._parts.fields import Deviation
from hwtrain._parts.part import Part
from hwtrain.periphery.asymmetry import OutputAsymmetry
from hwtrain.periphery.voltage_offset import VoltageOffset


class SeparateSigns(Part):
    r"""Reads a tile for positive and for negative inputs, and adds both currents.

    .. math::
        y = f(\max(x, 0), w) + f(\min(x, 0), w\,(1 + a\,\xi)), \qquad
        \xi \sim \mathcal{N}(0, 1)

    with f what lies inside: the product, IR drop, voltage offset and read noise of each
    pass, and :math:`\xi` a number of each device that is frozen with the chip. The sum
    is analog: saturation, output noise and ADC see it once. Where f is linear and a = 0
    nothing changes but time and energy.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023:
      reads of both polarities, one after the other.
    """

    draws = "chip"
    read_asymmetry: Deviation = 0.0
    """a, the relative spread over devices of the weight that a negative input sees.
    Zero turns it off."""

    @property
    def passes(self):
        """Reads of the tile."""
        return 2

    def draws_at(self, when):
        """Whether it draws, which it does only with a spread."""
        return super().draws_at(when) and self.read_asymmetry > 0

    def around(self, inner, x, ctx):
        """Reads both signs."""
        negative = jnp.minimum(x, 0)
        if self.read_asymmetry == 0:
            return inner(jnp.maximum(x, 0)) + inner(negative)
        deviation = ctx.weight_spread(self.read_asymmetry, "read_asymmetry")
        seen = ctx.w * (1 + deviation)
        return inner(jnp.maximum(x, 0)) + inner(negative, weights=seen)

    def describe(self):
        """Returns its name and its spread."""
        spread = self.read_asymmetry
        return "signs apart" + (f", asymmetry {spread:g}" if spread else "")

    def proof(self, ctx):
        """Declares its measured effect: two passes, and the spread of the negative."""
        self._passes_apart(
            ctx, VoltageOffset(r_series=1.0, w_min=0.0), lambda y: y / (1 + np.abs(y))
        )

    def _passes_apart(
        self, ctx: Any, distortion: Part, expected: Callable[[Any], Any]
    ) -> None:
        """Requires that a distortion of outputs acts on each sign alone."""

        def apart(x, tile):
            signs = np.maximum(x, 0), np.minimum(x, 0)
            return sum(expected(tile.multiply(sign)) for sign in signs)

        def at_once(x, tile):
            return expected(tile.multiply(x))

        alike = dataclasses.replace(self, read_asymmetry=0.0)
        around = alike, distortion
        ctx.responds(apart, "mv_type", *around, rest=at_once, outputs=1.0)
        if self.read_asymmetry == 0:
            return

        def deviation(x):
            square = jnp.square(jnp.minimum(x, 0))
            variance = ctx.product(square, jnp.square(ctx.w))
            return self.read_asymmetry * jnp.sqrt(variance)

        ctx.spreads(deviation, "w_read_asymmetry_dtod", of=self, alike=alike)


class SeparateSignsDigitally(SeparateSigns):
    r"""Reads a tile for positive and for negative inputs, and adds both results.

    .. math:: y = \mathrm{ADC}(f(\max(x, 0), w)) + \mathrm{ADC}(f(\min(x, 0), w'))

    As `SeparateSigns`, but each pass has its own saturation, output noise and ADC, and
    the sum is digital.
    """

    def describe(self):
        """Returns its name and its spread."""
        return super().describe().replace("apart", "apart, digital sum")

    def proof(self, ctx):
        """Declares its measured effect: that each pass has its own distortion."""
        weaker = OutputAsymmetry(share=0.5)
        self._passes_apart(ctx, weaker, lambda y: np.where(y < 0, y / 2, y))
