"""Reads of outputs at an offset voltage and through a series resistance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays.tiling import over_batch
from hwtrain._parts.part import Part


def offset_outputs(
    y: jax.Array,
    x: jax.Array,
    *,
    offset: ArrayLike = 0.0,
    w_min: float = -1.0,
    r_series: float = 0.0,
) -> jax.Array:
    r"""Returns outputs read at an offset voltage and through a series resistance.

    .. math::
        y' = \frac{(1 - v)(y + y_0)}{1 + \rho |y + y_0|}
           - \frac{(1 + v)\, y_0}{1 + \rho |y_0|}, \qquad
        y_0 = -w_\text{min} \sum_j x_j

    The current of devices that hold :math:`w_\text{min}` is subtracted as a reference.

    >>> y, x = jnp.full((1, 1, 1, 1), 2.0), jnp.ones((1, 1, 1, 3))
    >>> print(offset_outputs(y, x, w_min=0.0, r_series=0.5).item())
    1.0

    Args:
      y: `[..., row tiles, column tiles, columns]`, in normalised units.
      x: `[..., row tiles, column tiles or 1, rows]`, the inputs that produced them.
      offset: v, relative to the read voltage, broadcastable against `y`.
      w_min: weight of a device that is off.
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


class VoltageOffset(Part):
    """Distorts outputs by an offset of the read voltage and a series resistance.

    `offset_outputs` has the equation.
    """

    draws = "chip"
    spread: float = 0.0
    """Spread of the offset over the outputs of a chip, relative to the read voltage;
    negative offsets become zero."""
    w_min: float = -1.0
    """Weight of a device that is off."""
    r_series: float = 0.0
    """Series resistance, in normalised units."""

    def draws_at(self, when):
        """Whether it draws, which it does only with a spread."""
        return super().draws_at(when) and self.spread > 0

    def around(self, inner, x, ctx):
        """Applies the offset and the resistance to the outputs."""
        offset = jnp.maximum(ctx.spread(self.spread, "voltage_offset"), 0.0)
        y = inner(x)
        return offset_outputs(
            y, x, offset=offset, w_min=self.w_min, r_series=self.r_series
        )

    def describe(self):
        """Returns its fields."""
        return f"voltage offset {self.spread:g}, r_series {self.r_series:g}"

    def proof(self, ctx):
        """Declares its measured effect: that both options change outputs."""
        if self.r_series > 0:
            rest = dataclasses.replace(self, r_series=0.0)
            ctx.differs("r_series", rest if self.spread > 0 else None)

            def expected(x, tile):
                reference = -self.w_min * x.sum(axis=-1, keepdims=True)
                y = tile.multiply(x) + reference
                rho = self.r_series
                reference = reference / (1 + rho * np.abs(reference))
                return y / (1 + rho * np.abs(y)) - reference

            ctx.responds(expected, "r_series", dataclasses.replace(self, spread=0.0))
        if self.spread > 0:
            rest = dataclasses.replace(self, spread=0.0)
            ctx.differs("v_offset_std", rest if self.r_series > 0 else None)

            def deviation(x):
                # Half of the offsets are zero.
                y = ctx.product(x, ctx.w)
                reference = -self.w_min * jnp.sum(x, axis=-1, keepdims=True)
                return self.spread / 2**0.5 * jnp.abs(y + 2 * reference)

            alone = dataclasses.replace(self, r_series=0.0)
            ctx.spreads(deviation, "v_offset_std", of=alone)
