"""Clipping of weights to the device's range."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays import statistics
from hwtrain._errors import InputError
from hwtrain._parts.fields import Positive, changed, configuration
from hwtrain._parts.leaf import LeafSpec, When, not_positive
from hwtrain._parts.part import Described
from hwtrain._parts.registry import register_types
from hwtrain._parts.texts import span
from hwtrain.weights.learned_bound import learned_clip


def layer_gaussian(
    w: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    sigma: float,
    limit: ArrayLike | None = None,
    per_column: bool = False,
    scale: jax.Array | None = None,
    update: jax.Array | None = None,
) -> jax.Array:
    r"""Returns a bound of `sigma` standard deviations.

    .. math:: c = \min(\text{sigma} \cdot \mathrm{std}(w),\ \text{limit})

    >>> w = jnp.array([[-1.0], [0.0], [1.0]])
    >>> layer_gaussian(w, (3,), sigma=2.0)
    Array([[2.]], dtype=float32)

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      row_sizes: rows of each row tile.
      sigma: the bound in standard deviations (N-1, about the mean).
      limit: the largest bound, broadcastable against the result; `None` for no limit.
      per_column: take the standard deviation of each column alone.
      scale: `[..., row tiles, columns or 1]`, by which the weights are divided first;
        `None` for 1.
      update: added to the weights, of their shape and units; `None` for none.

    Returns:
      `[..., row tiles, columns or 1]`; infinite where all weights are equal, since
      their spread then defines no range.
    """
    std = statistics.standard_deviation(
        w, row_sizes, per_column=per_column, scale=scale, update=update
    )
    bound = jnp.where(std > 0, sigma * std, jnp.inf)
    return bound if limit is None else jnp.minimum(bound, limit)


def average_channel_max(
    w: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    limit: ArrayLike | None = None,
    scale: jax.Array | None = None,
    update: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the mean over columns of their largest absolute weight.

    .. math:: c = \min\big(\mathrm{mean}_j \max_i |w_{ij}|,\ \text{limit}\big)

    >>> average_channel_max(jnp.array([[0.5, -1.0], [0.0, 0.2]]), (2,))
    Array([[0.75]], dtype=float32)

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      row_sizes: rows of each row tile.
      limit: the largest bound, broadcastable against the result; `None` for no limit.
      scale: `[..., row tiles, columns or 1]`, by which the weights are divided first;
        `None` for 1.
      update: added to the weights, of their shape and units; `None` for none.

    Returns:
      `[..., row tiles, 1]`.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    largest = statistics.absolute_maximum(w, row_sizes, per_column=True, update=update)
    largest = largest.astype(jnp.float32) / (1.0 if scale is None else scale)
    bound = jnp.mean(largest, axis=-1, keepdims=True)
    return bound if limit is None else jnp.minimum(bound, limit)


def bounded_update(param: jax.Array, update: jax.Array, bound: ArrayLike) -> jax.Array:
    r"""Returns the update with which a parameter stays within a bound, exactly.

    .. math:: |\mathrm{round}(p + u')| \le c

    An update that keeps the bound is returned unchanged. Any other leads to the bound,
    and is stepped toward zero if rounding the sum, in the parameter's dtype, would
    overshoot.

    >>> p, u = jnp.array([0.5, 0.5]), jnp.array([0.1, 0.9])
    >>> print(p + bounded_update(p, u, 1.0))
    [0.6 1. ]

    Args:
      param: the parameter, of any shape and floating dtype.
      update: the update, to be added to it.
      bound: c, broadcastable against the parameter; infinity turns it off.

    Returns:
      The update, in its own dtype. A float32 update takes a weight of a narrower dtype
      to the largest value within the bound. A narrower update does so if the step
      itself is exact, and otherwise falls short by the rounding of the step.
    """
    p, u = as_float32(param), as_float32(update)
    c = jnp.broadcast_to(jnp.asarray(bound, jnp.float32), p.shape)
    target = inside = jax.lax.clamp(-c, p + u, c)
    aims = [target]
    if param.dtype != jnp.float32:
        target = _rounded(target, param.dtype)
        # Rounding may have exceeded the bound again.
        lower = _toward_zero(target, param.dtype)
        target = jnp.where(jnp.abs(target) > c, lower, target)
        inside = _toward_zero(target, param.dtype)
        aims = [target, inside]
    # A weight near its bound gets there exactly. The step of a distant one, and so the
    # sum, is as coarse as the weight itself: it aims lower by that much, or at zero.
    coarse = 2 * float(jnp.finfo(update.dtype).eps)
    # Not |p|: XLA would store it to share it with a kernel that computes max |p|.
    size = jnp.maximum(p, -p)
    below = (1 - coarse) - size * (coarse / jnp.maximum(c, 1e-30))
    for aim in [*aims, inside * jnp.maximum(below, 0)]:
        missed = jnp.abs(_rounded(p + u, param.dtype)) > c
        u = jnp.where(missed, _rounded(aim - p, update.dtype), u)
    return u.astype(update.dtype)


def as_float32(x: jax.Array) -> jax.Array:
    """Returns floating-point numbers as float32, rounded to their original dtype.

    Without this, the compiler may base decisions on numbers that it has not rounded
    yet, and then add rounded ones.
    """
    return _rounded(x.astype(jnp.float32), x.dtype)


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rounds float32 values to a dtype in a way that XLA does not optimise away."""
    if dtype == jnp.float32:
        return x
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def _toward_zero(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the next value of a dtype toward zero, for float32 input."""
    integer = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    bits = jax.lax.bitcast_convert_type(x.astype(dtype), integer)
    smaller = jnp.where(x == 0, bits, bits - jnp.ones((), integer))
    return jax.lax.bitcast_convert_type(smaller, dtype).astype(jnp.float32)


def _learns_clip(weight: Any, when: When) -> bool:
    return weight.kind != "raw" and weight.hardware.learns_clip


def within_bound(
    weight: Any, kernel: jax.Array, bound: jax.Array, steps: float | None = None
) -> jax.Array:
    """Returns a kernel clipped to its learned bound.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      bound: its learned clip bound, `[*stack, row tiles, columns]`.
      steps: number of steps between -bound and bound to round to; `None` for none.
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
"""Learned bound of the weights, for each row tile and column."""


@register_types("clip")
@configuration
class WeightClipParameter(Described):
    r"""Clips the weights after every update, symmetrically about zero.

    .. math::
        \text{fixed_value:}\quad & c = \text{fixed_value} \\
        \text{layer_gaussian:}\quad & c = \text{sigma} \cdot \mathrm{std}(w) \\
        \text{average_channel_max:}\quad & c = \mathrm{mean}_j \max_i |w_{ij}| \\
        \text{learnable_per_channel:}\quad & c_j \text{ learned from } \max_i |W_{ij}|

    The standard deviation (N-1) and the mean over columns are taken over the row tile,
    and :math:`w` is the weight in units of the crossbar: the kernel divided by its
    mapping scale.

    A learned bound is a leaf `clip_bound` beside the kernel, in units of the kernel. It
    clips in the forward pass, in every mode, and not after an update: a weight beyond
    it keeps its value and takes effect again when the bound grows. With a modifier that
    rounds to levels per column, the levels span -c to c, and the rounding contributes
    to the bound's gradient.

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
    """Take the standard deviation of each column (output) separately."""

    @property
    def active(self) -> bool:
        """Whether an update is followed by clipping."""
        return self.type not in ("none", "learnable_per_channel")

    @property
    def learned(self) -> bool:
        """Whether the bound is learned and clips in the forward pass."""
        return self.type == "learnable_per_channel"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type == "fixed_value" and self.fixed_value is None:
            raise InputError(
                'type="fixed_value" needs the bound: write fixed_value=1.0, or another '
                "positive number in units of the crossbar's weight"
            )
        if self.per_column and self.type != "layer_gaussian":
            raise InputError(
                f'per_column=True does nothing with type="{self.type}"; leave it out '
                'or write type="layer_gaussian"'
            )
        if not self.active and self.fixed_value is not None:
            raise InputError(
                f'fixed_value={self.fixed_value} does nothing with type="{self.type}"; '
                'leave it out or write type="fixed_value"'
            )
        if self.type != "layer_gaussian" and changed(self, ["sigma"]):
            raise InputError(
                f'sigma={self.sigma} does nothing with type="{self.type}"; leave it '
                'out or write type="layer_gaussian"'
            )
        return self

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: that it bounds an update, and where."""
        reason = "a tile of one weight or column has no spread"
        ctx.bounds(unless="" if self._spreads(ctx.rows, ctx.columns) else reason)
        if self.type == "fixed_value":
            ctx.caps(self.fixed_value)
        ctx.clips_to(self._in_numpy)

    def _in_numpy(self, w: np.ndarray) -> Any:
        """Returns the bound of a tile, `[rows, columns]`, for the proof."""
        limit, bound = self.fixed_value or np.inf, np.inf
        if self.type == "average_channel_max":
            bound = np.mean(np.max(np.abs(w), axis=0))
        elif self.type == "layer_gaussian":
            axis = 0 if self.per_column else None
            if (w.shape[0] if self.per_column else w.size) > 1:
                std = np.std(w, axis=axis, ddof=1)
                bound = np.where(std > 0, self.sigma * std, np.inf)
        return np.minimum(bound, limit)

    def _spreads(self, rows: int, columns: int) -> bool:
        """Whether a tile of this size has the statistic that the bound is made of."""
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
        """Returns its table cell: for a learned bound, its range of values."""
        if not self.learned:
            return {ctx.column: self.describe()}
        bound = ctx.leaf("clip_bound")
        if bound is None:
            return {ctx.column: ctx.missing}
        return {ctx.column: f"{self.type} {span(bound.min(), bound.max())}"}

    def bound(
        self,
        w: jax.Array,
        row_sizes: tuple[int, ...],
        scale: jax.Array | None = None,
        *,
        update: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the bound of weights, in the units of the weights.

        Args:
          w: `[..., rows, columns]`.
          row_sizes: rows of each row tile.
          scale: `[..., row tiles, columns or 1]`, the weights' mapping scale; `None`
            for 1, weights in units of the crossbar.
          update: added to the weights first, of their shape and units; `None` for none.

        Returns:
          `[..., row tiles, columns or 1]`; infinite where nothing is clipped.
        """
        unit = jnp.ones((*w.shape[:-2], len(row_sizes), 1)) if scale is None else scale
        unit, value = jax.lax.stop_gradient(unit), self.fixed_value
        if self.type == "fixed_value" and value is not None:
            return value * unit
        given: dict[str, Any] = {"limit": value, "scale": unit, "update": update}
        # One bound for columns of different scales is computed on the crossbar.
        differ = unit.shape[-1] > 1 and not self.per_column
        if not differ:
            # Spreads and maxima grow with the scale of the weights.
            given |= {"limit": None if value is None else value * unit, "scale": None}
        if self.type == "layer_gaussian":
            each = self.per_column
            bound = layer_gaussian(
                w, row_sizes, sigma=self.sigma, per_column=each, **given
            )
        elif self.type == "average_channel_max":
            bound = average_channel_max(w, row_sizes, **given)
        else:
            return jnp.full_like(unit, jnp.inf)
        return bound * unit if differ else bound
