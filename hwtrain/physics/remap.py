"""Remapping: a new scale for a crossbar, with the same logical weights."""

import jax
import jax.numpy as jnp

from hwtrain.physics import tiling


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
    r"""Returns the scale at which a crossbar is used to its full range.

    .. math:: s' = s\, \frac{\max |w|}{w_\text{max}}

    of each tile or of each of its columns; where all weights are zero, s. With a
    scale range R > 0, :math:`s' \le R m`, with m the larger of the smallest s of the
    tile and `max_scale_ref`; a weight can then exceed 1, which the next clip corrects.

    >>> w, s = jnp.array([[0.5, 0.1], [0.25, -0.2]]), jnp.ones((1, 1))
    >>> print(remapped_scale(w, s, (2,), (2,), per_column=True))
    [[0.5 0.2]]

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      scale: `[..., row tiles, columns, column tiles or 1]`, what the crossbar's result
        is multiplied by, positive. One of several column tiles, of size 1, stays one.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      per_column: a scale for each column, or one change for the tile.
      remapped_wmax: the largest weight after remapping, in units of the crossbar.
      max_scale_range: R, the largest ratio of scales. Zero turns it off.
      max_scale_ref: the least that the smallest scale is taken for. Zero turns it off.

    Returns:
      The new scale: `[..., row tiles, columns]` if per column, else of the shape of
      `scale`.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    alone = scale.shape[-1] == 1 and not per_column
    w_max = tiling.absolute_maximum(w, row_sizes, per_column=not alone)
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

    so that the logical weight :math:`s w` stays as it is.

    >>> w, s = jnp.array([[0.5]]), jnp.ones((1, 1))
    >>> print(rescaled(w, s, s / 2, (1,)))
    [[1.]]

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      scale: `[..., row tiles, columns or 1]`, the scale that `w` belongs to.
      new_scale: the same, new.
      row_sizes: rows of each row tile.
    """
    return w * tiling.expand_rows(scale / new_scale, row_sizes).astype(w.dtype)
