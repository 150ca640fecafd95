"""The range of a tile's inputs, at the border to its periphery."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._parts.leaf import LeafSpec, When
from hwtrain._parts.part import Part
from hwtrain.physics import tiling
from hwtrain.physics.average_maximum import record_maxima
from hwtrain.physics.input_range import (
    PROBE_SIZE,
    RangeGradient,
    clip_to_range,
    clipped,
)


def _is_ranged(weight: Any, when: When) -> bool:
    return weight.ranged


def _first_range(weight: Any, matrix: jax.Array) -> jax.Array:
    given = weight.hardware.input_range
    value = given.init_value if given is not None else 1.0
    return jnp.full((*weight.stack, *weight.tiles), value, jnp.float32)


RANGE = LeafSpec(
    name="input_range",
    there=_is_ranged,
    initial=_first_range,
    trained="range",
    positive=True,
    unit="unit of the layer's input",
)
"""The range of the inputs of each tile."""

PROBE = LeafSpec(
    name="probe",
    there=_is_ranged,
    shapes=lambda weight: ((*weight.tiles, PROBE_SIZE),),
    initial=0.0,
    trained="range",
    exported="zeros",
)
"""Zeros whose gradient carries a layer's statistics to the optimiser."""


class Range(Part):
    r"""Clips inputs to their range, and computes in its units further in.

    .. math:: y = r\, f\!\left(\frac{\mathrm{clip}(x, -r, r)}{r}\right)

    The range is the leaf `RANGE`; what its update must know of the inputs is the
    gradient of `PROBE`. Without the latter, all is plain JAX.
    """

    averages: bool = False
    """Whether it is an average of the largest inputs, which clips nothing."""
    gradient_scale: float = 1.0
    """Factor on the gradient of the range."""
    gradient_relative: bool = True
    """Whether that is multiplied by the range."""
    straight_through: bool = False
    """Whether clipped inputs get their gradient."""

    def runs_whole(self) -> bool:
        """Whether windows are not looked at: an average is that of their maxima."""
        return not self.averages

    @property
    def gradient(self) -> RangeGradient:
        """How the gradient of the range is taken."""
        return RangeGradient(
            self.gradient_scale, self.gradient_relative, self.straight_through
        )

    def around(self, inner, x, ctx):
        """Clips them."""
        x, r = ctx.crossbar.ranged(self, x, ctx.leaves)
        y = inner(x.astype(jnp.float32) / tiling.over_batch(r, x))
        return y * tiling.over_batch(ctx.crossbar.of_range(r), y)

    def describe_in(self, ctx):
        """Returns its cell, of an average; of a range its parameter does."""
        return {ctx.column: as_text(ctx, 1.0, "average of max|x| ")}

    def proof(self, ctx):
        """Of an average, that it is heard of; `InputRangeParameter` says the rest."""
        # At first it is 1, which is as good as none.
        ctx.follows("input_range", "noise_management")


def ranged(
    stage: Range, x: jax.Array, leaves, row_sizes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs of tiles within their range, and the range.

    Args:
      stage: how they are clipped.
      x: `[..., row tiles, 1, rows]`, in units of the input.
      leaves: the parameters beside the weights.
      row_sizes: rows of each row tile.

    Returns:
      `[..., row tiles, column tiles or 1, rows]`, and `[row tiles, column tiles, 1]`.
    """
    of_tiles, probe = leaves[RANGE.name], leaves.get(PROBE.name)
    r = jax.lax.stop_gradient(of_tiles)[..., None].astype(jnp.float32)
    if stage.averages:
        x = x if probe is None else record_maxima(x, of_tiles, probe)
    elif probe is None:
        through = stage.straight_through
        x = clipped(x, r.astype(x.dtype), straight_through=through)
    else:
        x = clip_to_range(x, of_tiles, probe, row_sizes, stage.gradient)
    return x, r


def as_text(ctx, start: float, what: str = "") -> str:
    """Returns what a range is in words.

    Args:
      ctx: where it is described.
      start: what it is before it was set from data.
      what: put before the value.
    """
    value = ctx.leaf("input_range")
    if value is None:
        return ctx.missing
    if (value == np.float32(start)).all():
        return f"{start:g}, not initialised from data"
    low, high = value.min(), value.max()
    return what + (f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}")
