"""The range of a tile's inputs: learned, clipped to, divided by."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain._arrays import tiling
from hwtrain._parts.fields import (
    CONFIG,
    Count,
    Deviation,
    Positive,
    Share,
    changed,
)
from hwtrain._parts.leaf import LeafSpec, When
from hwtrain._parts.part import Described, Part
from hwtrain.periphery._average_maximum import record_maxima
from hwtrain.periphery._range_gradient import (
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


_LEARNING = (
    "decay",
    "input_min_percentage",
    "manage_output_clipping",
    "output_min_percentage",
    "gradient_scale",
    "gradient_relative",
)
"""What only a learned range feels."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class InputRangeParameter(Described):
    r"""The range of a tile's inputs: clipped to it, and learned.

    .. math:: \hat x = \mathrm{clip}(x, -r, r)

    `optim.input_range_learning` says how the range is learned.

    >>> InputRangeParameter(init_value=2.0).learn_input_range
    True

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """

    enable: bool = True
    """False is the same as no `input_range` at all: no clipping."""
    dynamic: bool = False
    """Take max abs(x) of each input vector on each tile as the range, which then clips
    nothing and is the full scale of the DAC. Nothing is stored, nothing is learned."""
    learn_input_range: bool = True
    """False keeps the range where it is."""
    init_value: Positive = 3.0
    """The range at initialisation, in units of the layer's input."""
    init_from_data: Count = 100
    """Number of updates that set the range from the data instead of learning it.
    Zero turns this off."""
    init_std_alpha: Positive = 3.0
    """The range that they set, in standard deviations of the input."""
    decay: Deviation = 0.001
    """Decay of the range, relative, times the learning rate. Zero turns it off."""
    input_min_percentage: Share = 0.95
    """The range decays only while more than this share of inputs is not clipped."""
    manage_output_clipping: bool = False
    """Widen the range while the ADC clips outputs. Needs an `out_bound`, and no noise
    or bound management."""
    output_min_percentage: Share = 0.95
    """It is widened while less than this share of outputs is inside the bound."""
    gradient_scale: Positive = 1.0
    """Factor on the range's gradient."""
    gradient_relative: bool = True
    """Multiply the range's gradient by the range."""
    straight_through: bool = False
    """Give clipped inputs their gradient, as if they had not been clipped."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cell: what was learned."""
        if self.dynamic:
            return {ctx.column: "dynamic, max|x| of each vector"}
        if not ctx.weight.ranged:
            return {}
        return {ctx.column: as_text(ctx, self.init_value)}

    @property
    def moves(self) -> bool:
        """Whether updates move it: it is learned, or set from data."""
        return self.learn_input_range or self.init_from_data > 0

    @property
    def alone(self) -> Self:
        """The same without asking for an ADC."""
        return replace(self, manage_output_clipping=False, output_min_percentage=0.95)

    def proof(self, ctx: Any) -> None:
        """Says what is measured of it: it clips, and has a gradient to learn from."""
        # Bounds of converters may clip where it does, so it is told alone.
        ctx.differs("input_range", alone=True)
        ctx.clips(ctx.leaves["input_range"], "input_range clips")
        if self.learn_input_range:
            ctx.learns("input_range", "input_range learns")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.enable:
            idle = [text for text in changed(self) if text != "enable=False"]
            reason = "enable=False"
        elif self.dynamic:
            allowed = ("dynamic=True", "learn_input_range=False")
            idle = [text for text in changed(self) if text not in allowed]
            reason = "dynamic=True"
        elif not self.learn_input_range:
            idle = changed(self, _LEARNING)
            reason = "learn_input_range=False"
        else:
            return self
        if idle:
            raise ValueError(
                f"{', '.join(idle)}: nothing of this has an effect with {reason}; "
                f"leave it out, or leave out {reason}"
            )
        return self
