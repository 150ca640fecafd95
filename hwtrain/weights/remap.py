"""Remapping: updates the scale of each crossbar."""

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import model_validator

from hwtrain._arrays import statistics, tiling
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive, configuration
from hwtrain._parts.part import Described


def remapped_scale(
    w: jax.Array,
    scale: jax.Array,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    *,
    per_column: bool,
    remapped_wmax: float = 1.0,
    max_scale_range: float = 0.0,
    max_scale_ref: float = 0.0,
) -> jax.Array:
    r"""Returns the scale with which a crossbar uses its full range.

    .. math:: s' = s\, \frac{\max |w|}{w_\text{max}}

    for each tile or each of its columns; s where all weights are zero. With a scale
    range R > 0, :math:`s' \le R m`, with m the larger of the smallest s of the tile and
    `max_scale_ref`; a weight can then exceed 1, which the next clip corrects.

    >>> w, s = jnp.array([[0.5, 0.1], [0.25, -0.2]]), jnp.ones((1, 1))
    >>> print(remapped_scale(w, s, (2,), (2,), per_column=True))
    [[0.5 0.2]]

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      scale: `[..., row tiles, columns, column tiles or 1]`, positive, the factor on the
        crossbar's result. A size of 1 for several column tiles stays 1.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      per_column: use a scale per column instead of one per tile.
      remapped_wmax: the largest weight after remapping, in units of the crossbar.
      max_scale_range: R, the largest ratio of scales. Zero turns the limit off.
      max_scale_ref: lower limit of the smallest scale m. Zero turns it off.

    Returns:
      The new scale: `[..., row tiles, columns]` if per column, else in the shape of
      `scale`.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    alone = scale.shape[-1] == 1 and not per_column
    w_max = statistics.absolute_maximum(w, row_sizes, per_column=not alone)
    if not alone and not per_column:
        w_max = tiling.over_columns(jnp.max, w_max, column_sizes)
        if scale.shape[-1] != len(column_sizes):
            w_max = tiling.expand_columns(w_max, column_sizes)
    factor = jnp.where(w_max > 0, w_max / remapped_wmax, 1).astype(scale.dtype)
    new = scale * factor
    if max_scale_range == 0:
        return new
    smallest = scale
    if scale.shape[-1] > 1:
        smallest = tiling.over_columns(jnp.min, scale, column_sizes)
        smallest = tiling.expand_columns(smallest, column_sizes)
    smallest = jnp.maximum(smallest, max_scale_ref)
    return jnp.minimum(new, smallest * max_scale_range)


def rescaled(
    w: jax.Array, scale: jax.Array, new_scale: jax.Array, row_sizes: tuple[int, ...]
) -> jax.Array:
    r"""Returns the crossbar's weights under a new scale.

    .. math:: w' = w\, s / s'

    so that the logical weight :math:`s w` does not change.

    >>> w, s = jnp.array([[0.5]]), jnp.ones((1, 1))
    >>> print(rescaled(w, s, s / 2, (1,)))
    [[1.]]

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      scale: `[..., row tiles, columns or 1]`, the scale of `w`.
      new_scale: the new scale, of the same form.
      row_sizes: rows of each row tile.
    """
    return w * tiling.expand_rows(scale / new_scale, row_sizes).astype(w.dtype)


@configuration
class WeightRemapParameter(Described):
    r"""Rescales crossbars after every update so that their full range is used.

    .. math::
        \text{layerwise_symmetric:}\ s' = s \max_{ij} |w_{ij}| / w_\text{max} \qquad
        \text{channelwise_symmetric:}\ s'_j = s_j \max_i |w_{ij}| / w_\text{max}

    for each tile. The logical weight, scale times :math:`w`, never changes.

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
    """Lower limit of the smallest scale in that ratio. Zero: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_scale_range and self.type != "channelwise_symmetric":
            raise InputError(
                f'max_scale_range={self.max_scale_range} does nothing with type="'
                f'{self.type}"; leave it out or write type="channelwise_symmetric"'
            )
        if self.max_scale_range and self.remapped_wmax != 1.0:
            raise InputError(
                "max_scale_range limits scales of weights up to 1, so it needs "
                f"remapped_wmax=1.0; got {self.remapped_wmax}"
            )
        if self.max_scale_ref and not self.max_scale_range:
            raise InputError(
                f"max_scale_ref={self.max_scale_ref} does nothing without "
                "max_scale_range; write max_scale_range too, or leave it out"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether remapping is on."""
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

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the scales that NumPy computes."""

        def tiles(x: np.ndarray) -> list[np.ndarray]:
            if x.shape[-1] != sum(ctx.column_sizes):
                return [x]
            return np.split(x, np.cumsum(ctx.column_sizes)[:-1], axis=-1)

        def rescaled(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
            rows = np.split(np.abs(w), np.cumsum(ctx.row_sizes)[:-1], axis=-2)
            largest = np.stack([tile.max(axis=-2) for tile in rows], axis=-2)
            if not self.per_column and scale.shape[-1] == 1:
                largest = largest.max(axis=-1, keepdims=True)
            elif not self.per_column:
                each = [tile.max(axis=-1, keepdims=True) for tile in tiles(largest)]
                if scale.shape[-1] == sum(ctx.column_sizes):
                    each = [np.repeat(x, n, -1) for x, n in zip(each, ctx.column_sizes)]
                largest = np.concatenate(each, axis=-1)
            new = scale * np.where(largest > 0, largest / self.remapped_wmax, 1)
            if not self.max_scale_range:
                return new
            least = [x.min(axis=-1, keepdims=True) + 0 * x for x in tiles(scale)]
            least = np.maximum(np.concatenate(least, axis=-1), self.max_scale_ref)
            return np.minimum(new, self.max_scale_range * least)

        ctx.rescales(rescaled)

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
          scale: `[..., row tiles, columns, column tiles or 1]`, the current scale.
          row_sizes: rows of each row tile.
          column_sizes: columns of each column tile.
        """
        if self.type == "none":
            return scale
        return remapped_scale(
            w,
            scale,
            row_sizes,
            column_sizes,
            per_column=self.per_column,
            remapped_wmax=self.remapped_wmax,
            max_scale_range=self.max_scale_range,
            max_scale_ref=self.max_scale_ref,
        )
