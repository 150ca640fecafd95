"""The input range of a tile: inputs are clipped to it and divided by it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import AfterValidator, Field, model_validator

from hwtrain._arrays import tiling
from hwtrain._errors import InputError
from hwtrain._parts.fields import (
    Count,
    Deviation,
    Felt,
    Positive,
    Share,
    changed,
    configuration,
)
from hwtrain._parts.leaf import LeafSpec, When
from hwtrain._parts.part import Described, Part
from hwtrain._parts.texts import span
from hwtrain.periphery._average_maximum import record_maxima
from hwtrain.periphery._range_gradient import (
    PROBE_SIZE,
    RangeGradient,
    clip_to_range,
    clipped,
)
from hwtrain.periphery.dac import Dac


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
"""The input range of each tile."""

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
    r"""Clips inputs to their range, and normalises them for the inner stages.

    .. math:: y = r\, f\!\left(\frac{\mathrm{clip}(x, -r, r)}{r}\right)

    The range is the leaf `RANGE`; statistics of the inputs for its update are the
    gradient of `PROBE`. Without `PROBE`, all operations are plain JAX.
    """

    averages: bool = False
    """Whether the range is an average of the largest inputs, which clips nothing."""
    gradient_scale: float = 1.0
    """Factor on the gradient of the range."""
    gradient_relative: bool = True
    """Whether that gradient is multiplied by the range."""
    straight_through: bool = False
    """Whether gradients pass through clipped inputs."""
    extremes: bool = False
    """Whether the range follows the extremes of the inputs."""

    def runs_whole(self) -> bool:
        """Whether windows are not needed: averages and extremes are of windows."""
        return not (self.averages or self.extremes)

    @property
    def gradient(self) -> RangeGradient:
        """The options of the range's gradient."""
        return RangeGradient(
            self.gradient_scale,
            self.gradient_relative,
            self.straight_through,
            self.extremes,
        )

    def around(self, inner, x, ctx):
        """Clips inputs to the range and multiplies outputs by it."""
        x, r = ctx.crossbar.ranged(self, x, ctx.leaves)
        y = inner(x.astype(jnp.float32) / tiling.over_batch(r, x))
        return y * tiling.over_batch(ctx.crossbar.of_range(r), y)

    def describe_in(self, ctx):
        """Returns the cell of an average; `InputRangeParameter` describes a range."""
        return {ctx.column: as_text(ctx, 1.0, "average of max|x| ")}

    def proof(self, ctx):
        """Declares its measured effect: that outputs follow the average."""
        # Its initial value of 1 has no effect, so `differs` would fail.
        ctx.follows("input_range", "noise_management")
        # Inside of a coarse DAC, outputs tell the average.
        step = 0.25

        def rounded(x, tile, r):
            levels = np.clip(step * np.rint(x / r / step), -1, 1)
            return r * tile.multiply(levels)

        ctx.responds(
            lambda x, tile, r: rounded(x, tile, np.asarray(r, np.float64)[..., None]),
            "noise_management",
            self,
            Dac(bound=1.0, res=step / 2),
            rest=lambda x, tile, r: rounded(x, tile, 1.0),
            leaves={"input_range": 2 * ctx.leaves["input_range"]},
        )


def ranged(
    stage: Range, x: jax.Array, leaves, row_sizes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs of tiles clipped to their range, and the range.

    Args:
      stage: the options of the clipping.
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
    """Returns a description of the value of a range.

    Args:
      ctx: context of the table cell.
      start: the value before it is set from data.
      what: text before the value.
    """
    value = ctx.leaf("input_range")
    if value is None:
        return ctx.missing
    if (value == np.float32(start)).all():
        return f"{start:g}, not initialised from data"
    return what + span(value.min(), value.max())


_LEARNING = (
    "decay",
    "input_min_percentage",
    "manage_output_clipping",
    "output_min_percentage",
    "gradient_scale",
    "gradient_relative",
)
"""Options that affect a learned range only."""


def _momentum(value: float) -> float:
    if value != -1 and not 0 <= value < 1:
        raise InputError(f"expected a share below 1, or -1 for extremes; got {value:g}")
    return value


Momentum = Annotated[float, Field(ge=-1, lt=1), AfterValidator(_momentum), Felt]
"""The weight of what is known, or -1."""


@configuration
class InputRangeParameter(Described):
    r"""The range to which a tile's inputs are clipped, and how it is learned.

    .. math:: \hat x = \mathrm{clip}(x, -r, r)

    See `optim.input_range_learning` for the learning rule.

    >>> InputRangeParameter(init_value=2.0).learn_input_range
    True

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """

    enable: bool = True
    """False is equivalent to no `input_range`: no clipping."""
    dynamic: bool = False
    """Use max abs(x) of each input vector on each tile as the range, which then clips
    nothing and is the full scale of the DAC. Nothing is stored or learned."""
    learn_input_range: bool = True
    """False keeps the range fixed, apart from `init_from_data`."""
    init_value: Positive = 3.0
    """Initial range, in units of the layer's input."""
    init_from_data: Count = 100
    """Number of updates that set the range from the data instead of learning it. Zero
    turns this off."""
    init_std_alpha: Positive = 3.0
    """The range set by these updates, in standard deviations of the input."""
    fast_mode: bool = False
    """Let the first `init_from_data` updates set the range from running averages of the
    largest and the smallest input, max(abs(smallest), abs(largest)). Afterwards it is
    learned from its true derivative, without decay. Convolutions then need windows."""
    act_range_momentum: Momentum = 0.95
    """Weight of the averages so far in those of `fast_mode`; the newest extremes have
    the rest. -1: the extremes of all updates."""
    decay: Deviation = 0.001
    """Relative decay of the range, times the learning rate. Zero turns it off."""
    input_min_percentage: Share = 0.95
    """The range decays only while more than this share of inputs is not clipped."""
    manage_output_clipping: bool = False
    """Widen the range while the ADC clips outputs. Needs an `out_bound`, and no noise
    or bound management."""
    output_min_percentage: Share = 0.95
    """The range is widened while less than this share of outputs is within bounds."""
    gradient_scale: Positive = 1.0
    """Factor on the gradient of the range."""
    gradient_relative: bool = True
    """Multiply the gradient of the range by the range."""
    straight_through: bool = False
    """Pass gradients through clipped inputs, as if they had not been clipped."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cell: the learned values."""
        if self.dynamic:
            return {ctx.column: "dynamic, max|x| of each vector"}
        if not ctx.weight.ranged:
            return {}
        return {ctx.column: as_text(ctx, self.init_value)}

    @property
    def moves(self) -> bool:
        """Whether updates change the range: it is learned, or set from data."""
        return self.learn_input_range or self.init_from_data > 0

    @property
    def alone(self) -> Self:
        """The same without the options that need an ADC."""
        return replace(self, manage_output_clipping=False, output_min_percentage=0.95)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: that it clips, and has a gradient."""
        # Tested alone, because bounds of converters may clip at the same values.
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
        elif self.fast_mode:
            learning = (*_LEARNING, "init_std_alpha")
            idle, reason = changed(self, learning), "fast_mode=True"
        elif not self.learn_input_range:
            idle = changed(self, (*_LEARNING, "act_range_momentum"))
            reason = "learn_input_range=False"
        else:
            idle, reason = changed(self, ("act_range_momentum",)), "fast_mode=False"
        if idle:
            raise InputError(
                f"{', '.join(idle)}: no effect with {reason}; leave it out, or leave "
                f"out {reason}"
            )
        return self
