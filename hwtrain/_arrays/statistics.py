"""Statistics of the weights of each row tile, over all columns or for each one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays.reductions import reduced_of, sum_of
from hwtrain._arrays.tiling import cut, mask, may_be_spread, over_batch

_NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)

_LANES = 128
"""Columns of a piece for one pass over a matrix; tiles are cut at multiples of it."""


def absolute_maximum(
    matrix: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    per_column: bool,
    update: jax.Array | None = None,
) -> jax.Array:
    """Returns max |w| of every row tile, `[..., row tiles, columns or 1]`.

    Args:
      matrix: `[..., rows, columns]`.
      row_sizes: rows of each row tile.
      per_column: take the maximum of each column, or else over all columns (size 1).
      update: `[..., rows, columns]`, added to the matrix as it is read; `None` for
        none. With an update, the result is float32 and has no gradient.
    """
    if update is not None:
        matrix, update = jax.lax.stop_gradient((matrix, update))
        return _largest_word((matrix, update), row_sizes, per_column)
    if matrix.dtype in _NARROW:
        return _largest(matrix, row_sizes, per_column)
    return _largest_by_jax(matrix, row_sizes, per_column)


def _largest_by_jax(
    matrix: jax.Array, row_sizes: tuple[int, ...], per_column: bool
) -> jax.Array:
    axes = -2 if per_column else (-2, -1)
    w_max = jnp.max(jnp.abs(cut(matrix, row_sizes, axis=-2)), axis=axes)
    return w_max if per_column else w_max[..., None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _largest(
    matrix: jax.Array, row_sizes: tuple[int, ...], per_column: bool
) -> jax.Array:
    return _largest_word((matrix,), row_sizes, per_column).astype(matrix.dtype)


@_largest.defjvp
def _largest_jvp(row_sizes, per_column, primals, tangents):
    def by_jax(matrix):
        return _largest_by_jax(matrix, row_sizes, per_column)

    return _largest(*primals, row_sizes, per_column), jax.jvp(
        by_jax, primals, tangents
    )[1]


def _largest_word(
    addends: tuple[jax.Array, ...], row_sizes: tuple[int, ...], per_column: bool
) -> jax.Array:
    """Returns the largest absolute sum of arrays in every row tile, float32.

    The words of positive floats are ordered like them, and NaN is above all.
    """
    lanes = [_in_lanes(array, row_sizes) for array in addends]
    words = reduced_of(
        lambda *w: jax.lax.bitcast_convert_type(jnp.abs(sum(w[1:], w[0])), jnp.int32),
        *lanes,
        axes=(-3,) if per_column else (-3, -2, -1),
        combine=jnp.maximum,
        reduce=jnp.max,
    )
    w_max = jax.lax.bitcast_convert_type(words, jnp.float32)
    return w_max.reshape(*lanes[0].shape[:-3], -1)


def _in_lanes(matrix: jax.Array, row_sizes: tuple[int, ...]) -> jax.Array:
    """Returns a matrix cut into row tiles, float32, for one pass over its elements.

    Args:
      matrix: `[..., rows, columns]`.
      row_sizes: rows of each row tile.

    Returns:
      `[..., row tiles, rows, n, columns / n]`. A gradient from tiles has their layout;
      in short pieces of columns, which lie on one tile each, reading it vectorises.
    """
    tiles = cut(matrix.astype(jnp.float32), row_sizes, axis=-2)
    columns = tiles.shape[-1]
    # A piece must stay on one device; an explicitly sharded axis cannot be split.
    shared = columns % (_LANES * jax.device_count())
    whole = shared or jax.typeof(tiles).sharding.spec[-1]
    size = columns if whole else _LANES
    return tiles.reshape(*tiles.shape[:-1], columns // size, size)


def standard_deviation(
    matrix: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    per_column: bool,
    scale: jax.Array | None = None,
    update: jax.Array | None = None,
) -> jax.Array:
    """Returns the standard deviation (N-1) of every row tile.

    Computed in one pass, from sums of the differences to the mean of eight weights, and
    of their squares. The variance loses at most as many ulps as an eighth of the number
    of weights of a tile.

    Args:
      matrix: `[..., rows, columns]`.
      row_sizes: rows of each row tile.
      per_column: take each column alone, or else all columns.
      scale: `[..., row tiles, columns or 1]`, by which the matrix is divided; `None`
        for 1.
      update: `[..., rows, columns]`, added to the matrix as it is read, without storing
        the sum. `None` for none.

    Returns:
      `[..., row tiles, columns or 1]`, float32; zero where N is 1.
    """
    addends = [array for array in (matrix, update) if array is not None]
    tiles = [_in_lanes(array, row_sizes) for array in addends]
    each = per_column or scale is not None
    axes = (-3,) if each else (-3, -2, -1)

    # Rows of the whole tile: the first ones may be unlike all others.
    few = min(8, row_sizes[-1])
    apart = row_sizes[-1] // few
    rows = slice(apart // 2, few * apart, apart)
    some = functools.reduce(jnp.add, [tile[..., rows, :, :] for tile in tiles])
    near = _near(some, per_column=each)

    def difference_and_square(valid, *tiles):
        difference = jnp.where(valid, sum(tiles) - near, 0)
        return jax.lax.complex(difference, jnp.square(difference))

    valid = over_batch(mask(row_sizes)[:, :, None, None], near)
    sums = sum_of(difference_and_square, valid, *tiles, axes=axes)
    stack = tiles[0].shape[:-3]
    sums, near = sums.reshape(*stack, 1, -1), near.reshape(*stack, 1, -1)
    total, squares = jnp.real(sums), jnp.imag(sums)
    width = 1 if each else matrix.shape[-1]
    count = np.asarray(row_sizes, np.float32)[:, None, None] * np.float32(width)
    count = over_batch(count, total)
    about_mean = squares - total * (total / count)
    if scale is not None:
        per_row = scale[..., None, :].astype(jnp.float32)
        mean, about_mean = (near + total / count) / per_row, about_mean / per_row**2
        if not per_column:
            # Of columns with different scales; Chan et al., 1979.
            middle = jnp.mean(mean, axis=-1, keepdims=True)
            about_mean = about_mean + count * jnp.square(mean - middle)
            about_mean = jnp.sum(about_mean, axis=-1, keepdims=True)
            count = count * matrix.shape[-1]
    variance = about_mean / np.maximum(count - 1, 1)
    # The derivative of the root at zero, for equal weights, is defined as zero.
    spread = variance > 0
    return jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0)[..., 0, :]


def _near(some: jax.Array, *, per_column: bool) -> jax.Array:
    """Returns a number near the weights of tiles: the mean of a few of them.

    Args:
      some: `[..., row tiles, few, n, lanes]`, a few rows of each tile.
      per_column: take the mean of each column, or else of one weight in each row.

    Returns:
      `[..., row tiles, 1, n or 1, lanes or 1]`
    """
    if may_be_spread(some, -3, -2, -1):
        # Rows that lie on several devices would be sent one by one, and an axis that an
        # explicit mesh shards cannot be sliced.
        axes = -3 if per_column else (-3, -2, -1)
        mean, low, high = (
            f(some, axis=axes, keepdims=True) for f in (jnp.mean, jnp.min, jnp.max)
        )
    else:
        # A chain fuses, while each reduction would be a separate kernel.
        few = jnp.split(some, some.shape[-3], -3)
        if not per_column:
            few = [_one(row, (i + 0.5) / len(few)) for i, row in enumerate(few)]
        mean = sum(few[1:], few[0]) / len(few)
        low, high = (functools.reduce(f, few) for f in (jnp.minimum, jnp.maximum))
    # The mean of equal numbers may differ from them, but their spread must be zero.
    return jnp.clip(mean, low, high)


def _one(row: jax.Array, place: float) -> jax.Array:
    """Returns one weight of a row, `[..., 1, 1]`, at a place from 0 to 1."""
    lane, column = (int(place * size) for size in row.shape[-2:])
    return row[..., lane : lane + 1, column : column + 1]
