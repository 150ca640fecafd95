"""What happens to weights: clipping after an update, and a chip's mismatch."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain._parts.constant import with_straight_through
from hwtrain._parts.leaf import LeafSpec, When, not_positive
from hwtrain._parts.part import Described
from hwtrain.hardware.bases import in_microsiemens
from hwtrain.hardware.configuration import (
    CONFIG,
    Deviation,
    NonNegative,
    Positive,
    changed,
)
from hwtrain.physics import clip, modifiers, remap, tiling
from hwtrain.physics.learned_clip import learned_clip


def _learns_clip(weight: Any, when: When) -> bool:
    return weight.kind != "raw" and weight.hardware.learns_clip


def within_bound(
    weight: Any, kernel: jax.Array, bound: jax.Array, steps: float | None = None
) -> jax.Array:
    """Returns a kernel within its learned clip bound.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      bound: its learned clip bound, `[*stack, row tiles, columns]`.
      steps: steps between -bound and bound that it is rounded to; `None` for none.
    """
    matrix = weight.to_matrix(kernel)
    return weight.from_matrix(learned_clip(matrix, bound, weight.row_sizes, steps))


CLIP_BOUND = LeafSpec(
    name="clip_bound",
    there=_learns_clip,
    shapes=lambda weight: ((weight.tiles[0], sum(weight.column_sizes)),),
    initial=lambda weight, matrix: weight.initial_bound(matrix),
    trained="bound",
    positive=True,
    fits=not_positive,
    in_kernel=within_bound,
)
"""The learned bound of the weights of each column of a row of tiles."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class WeightClipParameter(Described):
    r"""Clips the weights after every update, symmetrically about zero.

    .. math::
        \text{fixed_value:}\quad & c = \text{fixed_value} \\
        \text{layer_gaussian:}\quad & c = \text{sigma} \cdot \mathrm{std}(w) \\
        \text{average_channel_max:}\quad & c = \mathrm{mean}_j \max_i |w_{ij}| \\
        \text{learnable_per_channel:}\quad & c_j \text{ learned from } \max_i |W_{ij}|

    The standard deviation (N-1) and the mean over columns are those of the row tile,
    and :math:`w` is the weight in units of the crossbar, the kernel divided by its
    mapping scale.

    A learned bound is a leaf `clip_bound` beside the kernel, in units of the kernel. It
    clips on the way into the forward pass, in every mode, and not after an update: a
    weight beyond it keeps its value and is heard of again when the bound grows. With a
    modifier that rounds to levels for each column, the levels lie between -c and c, and
    the bound is learned from the rounding too.

    >>> WeightClipParameter(type="layer_gaussian", sigma=2.0).sigma
    2.0

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.

      Esser et al., Learned step size quantization, ICLR 2020.
    """

    type: Literal[
        "none",
        "fixed_value",
        "layer_gaussian",
        "average_channel_max",
        "learnable_per_channel",
    ] = "none"
    """`"none"` turns clipping off."""
    sigma: Positive = 2.5
    """The bound in standard deviations, for `layer_gaussian`."""
    fixed_value: Positive | None = None
    """The bound for `fixed_value`; for `layer_gaussian` and `average_channel_max` an
    upper limit of the bound, `None` for no limit."""
    per_column: bool = False
    """Take the standard deviation of each column (output) alone."""

    @property
    def active(self) -> bool:
        """Whether anything is clipped after an update."""
        return self.type not in ("none", "learnable_per_channel")

    @property
    def learned(self) -> bool:
        """Whether the bound is learned, and clips in the forward pass."""
        return self.type == "learnable_per_channel"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type == "fixed_value" and self.fixed_value is None:
            raise ValueError(
                'type="fixed_value" needs the bound: write fixed_value=1.0, or another '
                "positive number in units of the crossbar's weight"
            )
        if self.per_column and self.type != "layer_gaussian":
            raise ValueError(
                f'per_column=True does nothing with type="{self.type}"; leave it out '
                'or write type="layer_gaussian"'
            )
        if not self.active and self.fixed_value is not None:
            raise ValueError(
                f'fixed_value={self.fixed_value} does nothing with type="{self.type}"; '
                'leave it out or write type="fixed_value"'
            )
        if self.type != "layer_gaussian" and changed(self, ["sigma"]):
            raise ValueError(
                f'sigma={self.sigma} does nothing with type="{self.type}"; leave it '
                'out or write type="layer_gaussian"'
            )
        return self

    def proof(self, ctx: Any) -> None:
        """Says what is measured of it: that it bounds an update, and by how much."""
        reason = "a tile of one weight or column has no spread"
        ctx.bounds(unless="" if self._spreads(ctx.rows, ctx.columns) else reason)
        if self.type == "fixed_value":
            ctx.caps(self.fixed_value)

    def _spreads(self, rows: int, columns: int) -> bool:
        """Whether a tile of a size has what the bound is made of."""
        if self.fixed_value is not None:
            return True
        if self.type == "average_channel_max":
            return columns > 1
        return rows * (1 if self.per_column else columns) > 1

    def describe(self) -> str:
        """Returns its type and bound."""
        match self.type:
            case "fixed_value":
                return f"{self.type} {self.fixed_value:g}"
            case "layer_gaussian":
                each = " per column" if self.per_column else ""
                return f"{self.type} {self.sigma:g} std{each}"
            case "none":
                return ""
        return self.type

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cell: of a learned bound, what was learned."""
        if not self.learned:
            return {ctx.column: self.describe()}
        bound = ctx.leaf("clip_bound")
        if bound is None:
            return {ctx.column: ctx.missing}
        return {ctx.column: f"{self.type} {bound.min():.3g} to {bound.max():.3g}"}

    def bound(
        self,
        w: jax.Array,
        row_sizes: tuple[int, ...],
        scale: jax.Array | None = None,
        *,
        update: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the bound of weights, in their own units.

        Args:
          w: `[..., rows, columns]`.
          row_sizes: rows of each row tile.
          scale: `[..., row tiles, columns or 1]`, the weights' mapping scale; `None`
            for 1, weights in units of the crossbar.
          update: added to the weights before, of their shape and units; `None` for
            none.

        Returns:
          `[..., row tiles, columns or 1]`; infinite where nothing is clipped.
        """
        unit = jnp.ones((*w.shape[:-2], len(row_sizes), 1)) if scale is None else scale
        unit = jax.lax.stop_gradient(unit)
        if unit.shape[-1] > 1 and not self.per_column:
            # One bound for columns of different scales: in units of the crossbar.
            per_row = tiling.expand_rows(unit, row_sizes)
            update = None if update is None else update / per_row
            return self.bound(w / per_row, row_sizes, update=update) * unit
        # Spreads and maxima of weights grow with their scale, but not fixed values.
        value = None if self.fixed_value is None else self.fixed_value * unit
        if self.type == "layer_gaussian":
            return clip.layer_gaussian(
                w,
                row_sizes,
                sigma=self.sigma,
                limit=value,
                per_column=self.per_column,
                update=update,
            )
        w = w if update is None else w + update
        if self.type == "average_channel_max":
            return clip.average_channel_max(w, row_sizes, limit=value)
        return jnp.full_like(unit, jnp.inf) if value is None else value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class WeightRemapParameter(Described):
    r"""Gives crossbars a new scale after every update, so that they are used fully.

    .. math::
        \text{layerwise_symmetric:}\ s' = s \max_{ij} |w_{ij}| / w_\text{max} \qquad
        \text{channelwise_symmetric:}\ s'_j = s_j \max_i |w_{ij}| / w_\text{max}

    of each tile. The logical weight, scale times :math:`w`, never changes.

    >>> WeightRemapParameter(type="channelwise_symmetric").remapped_wmax
    1.0

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """

    type: Literal["none", "layerwise_symmetric", "channelwise_symmetric"] = "none"
    """`"none"` turns remapping off."""
    remapped_wmax: Positive = 1.0
    """The largest weight after remapping, in units of the crossbar."""
    max_scale_range: NonNegative = 0.0
    """Largest ratio of a column's scale to the smallest of its tile. Zero: no limit."""
    max_scale_ref: NonNegative = 0.0
    """The least that the smallest scale is taken for. Zero: as it is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_scale_range and self.type != "channelwise_symmetric":
            raise ValueError(
                f'max_scale_range={self.max_scale_range} does nothing with type="'
                f'{self.type}"; leave it out or write type="channelwise_symmetric"'
            )
        if self.max_scale_range and self.remapped_wmax != 1.0:
            raise ValueError(
                "max_scale_range limits scales of weights up to 1, so it needs "
                f"remapped_wmax=1.0; got {self.remapped_wmax}"
            )
        if self.max_scale_ref and not self.max_scale_range:
            raise ValueError(
                f"max_scale_ref={self.max_scale_ref} does nothing without "
                "max_scale_range; write max_scale_range too, or leave it out"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether any scale changes."""
        return self.type != "none"

    @property
    def per_column(self) -> bool:
        """Whether each column (output) has its own scale."""
        return self.type == "channelwise_symmetric"

    def describe(self) -> str:
        """Returns its type, the largest weight and the limit of scales."""
        if not self.active:
            return ""
        limit = f", scales up to {self.max_scale_range:g} x the smallest"
        limit = limit if self.max_scale_range else ""
        return f"{self.type} to {self.remapped_wmax:g}{limit}"

    def scale(
        self,
        w: jax.Array,
        scale: jax.Array,
        row_sizes: tuple[int, ...],
        column_sizes: tuple[int, ...],
    ) -> jax.Array:
        """Returns the new scale, `[..., row tiles, columns, column tiles or 1]`.

        Args:
          w: `[..., rows, columns]`, in units of the crossbar.
          scale: `[..., row tiles, columns, column tiles or 1]`, the scale now.
          row_sizes: rows of each row tile.
          column_sizes: columns of each column tile.
        """
        if self.type == "none":
            return scale
        return remap.remapped_scale(
            w,
            scale,
            row_sizes,
            column_sizes,
            per_column=self.per_column,
            remapped_wmax=self.remapped_wmax,
            max_scale_range=self.max_scale_range,
            max_scale_ref=self.max_scale_ref,
        )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MismatchParameter(Described):
    r"""Frozen device mismatch: drawn once for each chip, the same for ever.

    .. math::
        \text{add_normal:}\quad w' = w + \sigma A \xi \qquad
        \text{mult_normal:}\quad w' = w (1 + \sigma \xi)

    with :math:`w = W / s` a weight in the units of the crossbar, :math:`A` the largest
    absolute nominal one of the row tile, or 1, and :math:`\xi` a function of the chip's
    seed, the parameter's path and the element. So :math:`s A` is what the deviation of
    :math:`W` is relative to: the largest weight of the row tile where nothing is
    scaled, of the physical tile with a `weight_scaling_omega`, and of the column of the
    tile with `weight_scaling_columnwise` beside it.

    >>> MismatchParameter(type="mult_normal", std_dev=0.1).draws
    True

    References:
      Pelgrom et al., Matching properties of MOS transistors, IEEE JSSC 1989.
    """

    type: Literal["add_normal", "mult_normal"]
    std_dev: Deviation
    """Standard deviation: relative to A for `add_normal`, to the weight for
    `mult_normal`. Zero turns the mismatch off."""
    per_column: bool = False
    """Take A for each column (output) instead of the whole tile."""
    rel_to_actual_wmax: bool = True
    """Take A from the weights. If not, A is 1: for arrays with a unit of their own,
    such as the logarithms of a DynapSim's currents, which are zero at first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.rel_to_actual_wmax and (
            self.per_column or self.type == "mult_normal"
        ):
            other = "per_column=True" if self.per_column else 'type="mult_normal"'
            raise ValueError(
                f"rel_to_actual_wmax=False does nothing with {other}: the deviation is "
                'that of A = 1. Write type="add_normal" alone, or leave it out'
            )
        if self.per_column and self.type == "mult_normal":
            raise ValueError(
                'per_column=True does nothing with type="mult_normal", which is '
                "relative to each weight; leave it out or write "
                'type="add_normal"'
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether chips differ at all."""
        return self.std_dev > 0

    def describe(self) -> str:
        """Returns its type and strength."""
        if not self.draws:
            return ""
        unit = "" if self.rel_to_actual_wmax else " absolute"
        each = " per column" if self.per_column else ""
        return f"{self.type} {self.std_dev:g}{unit}{each}"

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cells: itself, and in µS."""
        relative = self.draws and self.rel_to_actual_wmax
        noise = in_microsiemens("mismatch", self.std_dev, ctx) if relative else {}
        return {ctx.column: self.describe(), **noise}

    def proof(self, ctx: Any) -> None:
        """Says what is measured of it: its deviation."""
        ctx.differs()
        if self.type == "mult_normal":
            sigma = ctx.w
        else:
            sigma = ctx.w_max if self.rel_to_actual_wmax else 1.0
        ctx.deviates(self.std_dev * sigma)

    def __call__(self, key: jax.Array, w: jax.Array, w_max: jax.Array) -> jax.Array:
        """Returns the weights of one chip; arguments as `WeightModifierParameter`."""
        if not self.draws:
            return w

        def change(w: jax.Array, w_max: jax.Array, true: bool = True) -> jax.Array:
            noise: Any = {"std_dev": self.std_dev, "reparameterized": true}
            if self.type == "mult_normal":
                return modifiers.mult_normal(key, w, **noise)
            largest = w_max if self.rel_to_actual_wmax else jnp.ones_like(w_max)
            return modifiers.add_normal(key, w, largest, **noise)

        new = with_straight_through(self, change, w, w_max)
        return change(w, w_max, true=False) if new is None else new
