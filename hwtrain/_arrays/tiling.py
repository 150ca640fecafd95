"""Crossbar tiles: the cutting of matrices, and statistics of their pieces.

A matrix `[..., rows, columns]` (rows are inputs) is cut into row tiles, whose partial
sums are added digitally, and column tiles, whose outputs are concatenated. A statistic
of the weights is taken over one row tile, over all of its columns or for each column.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LANES = 128
"""Columns of a piece for one pass over a matrix; tiles are cut at multiples of it."""


def split_sizes(size: int, max_size: int | None) -> tuple[int, ...]:
    """Cuts `size` into as few pieces of at most `max_size` as possible, balanced.

    >>> split_sizes(10, 4)
    (4, 3, 3)

    Args:
      size: number of rows or columns.
      max_size: the largest piece; `None` for one piece.
    """
    if max_size is None or size <= max_size:
        return (size,)
    pieces = -(-size // max_size)
    base, extra = divmod(size, pieces)
    return (base + 1,) * extra + (base,) * (pieces - extra)


def cut(array: jax.Array, sizes: tuple[int, ...], axis: int) -> jax.Array:
    """Cuts one axis into tiles: `[..., size, ...]` to `[..., tiles, largest, ...]`.

    Tiles that are one smaller than the largest are padded with a zero at the end.

    Args:
      array: the array.
      sizes: sizes from `split_sizes`, the larger ones first.
      axis: the axis to cut, counted from the end (negative).
    """
    axis = axis % array.ndim
    largest, count = sizes[0], len(sizes)
    lead, rest = array.shape[:axis], array.shape[axis + 1 :]
    extra = sum(size == largest for size in sizes)
    if count > 1:
        array = gathered(array, axis)
    if extra == count:
        return array.reshape(*lead, count, largest, *rest)
    boundary = extra * largest
    head = jax.lax.slice_in_dim(array, 0, boundary, axis=axis)
    tail = jax.lax.slice_in_dim(array, boundary, array.shape[axis], axis=axis)
    head = head.reshape(*lead, extra, largest, *rest)
    tail = tail.reshape(*lead, count - extra, largest - 1, *rest)
    padding = [(0, 0)] * tail.ndim
    padding[axis + 1] = (0, 1)
    return jnp.concatenate([head, jnp.pad(tail, padding)], axis=axis)


def gathered(array: jax.Array, axis: int) -> jax.Array:
    """Returns an array that may be cut anywhere on one axis.

    An axis that an explicit mesh shards can be sliced, indexed or split only at the
    borders of devices, so it is gathered first.

    Args:
      array: the array.
      axis: the axis that is about to be cut.
    """
    sharding = jax.typeof(array).sharding
    spec = list(sharding.spec)
    if not spec[axis]:
        return array
    spec[axis] = None
    whole = sharding.update(spec=jax.sharding.PartitionSpec(*spec))
    return jax.sharding.reshard(array, whole)


def placed_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Returns an array with the explicit sharding of another one of its shape."""
    sharding = jax.typeof(other).sharding
    if jax.typeof(array).sharding == sharding:
        return array
    return jax.sharding.reshard(array, sharding)


def join(array: jax.Array, sizes: tuple[int, ...], axis: int) -> jax.Array:
    """Inverse of `cut`: `[..., tiles, largest, ...]` to `[..., size, ...]`.

    Args:
      array: the array, cut.
      sizes: the sizes it was cut by.
      axis: position of the axis in the joined array, counted from the end (negative).
    """
    axis = axis % (array.ndim - 1)
    largest, count = sizes[0], len(sizes)
    extra = sum(size == largest for size in sizes)
    lead, rest = array.shape[:axis], array.shape[axis + 2 :]
    array = gathered(array, axis + 1)
    if extra < count:
        array = gathered(array, axis)
    if extra == count:
        return array.reshape(*lead, count * largest, *rest)
    head = jax.lax.slice_in_dim(array, 0, extra, axis=axis)
    tail = jax.lax.slice_in_dim(array, extra, count, axis=axis)
    tail = jax.lax.slice_in_dim(tail, 0, largest - 1, axis=axis + 1)
    head = head.reshape(*lead, extra * largest, *rest)
    tail = tail.reshape(*lead, (count - extra) * (largest - 1), *rest)
    return jnp.concatenate([head, tail], axis=axis)


def mask(sizes: tuple[int, ...]) -> np.ndarray:
    """Returns `[tiles, largest]`, true where a cut axis holds data, not padding."""
    return np.arange(sizes[0])[None, :] < np.asarray(sizes)[:, None]


def over_batch(statistic: Any, x: jax.Array) -> Any:
    """Returns a statistic of tiles or channels with leading axes of 1 for the batch.

    Needed because JAX may be configured not to add them (`jax.numpy_rank_promotion`).

    >>> over_batch(jnp.ones((2, 1)), jnp.ones((5, 2, 3))).shape
    (1, 2, 1)

    Args:
      statistic: an array; a number is returned unchanged.
      x: the array to broadcast against.
    """
    missing = range(jnp.ndim(x) - jnp.ndim(statistic))
    if jnp.ndim(statistic) == 0 or not missing:
        return statistic
    expand = np.expand_dims if isinstance(statistic, np.ndarray) else jnp.expand_dims
    return expand(statistic, tuple(missing))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def add_tiles(array: jax.Array, axis: int) -> jax.Array:
    """Adds tiles digitally, one after the other: `jnp.sum(array, axis)`.

    XLA fuses a chain of additions into the kernel that computes the addends; its
    reduction of a leading axis reads them again, and takes many times as long.

    >>> add_tiles(jnp.array([[1.0, 2.0], [3.0, 4.0]]), -2)
    Array([4., 6.], dtype=float32)

    Args:
      array: the array.
      axis: the axis to add over, counted from the end (negative).
    """
    if jax.typeof(array).sharding.spec[axis]:
        return jnp.sum(array, axis)  # over the devices that have the tiles
    tiles = [
        jax.lax.index_in_dim(array, i, axis, keepdims=False)
        for i in range(array.shape[axis])
    ]
    return sum(tiles[1:], tiles[0])


@add_tiles.defjvp
def _add_tiles_jvp(axis, primals, tangents):
    return add_tiles(primals[0], axis), jnp.sum(tangents[0], axis)


def sum_of(
    function: Callable[..., jax.Array], *arrays: Any, axes: tuple[int, ...]
) -> jax.Array:
    """Returns the sum of a function over axes: `jnp.sum(function(*arrays), axes)`.

    Computed in chains; see `reduced_of`. Pack two sums into one complex number.

    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> sums = sum_of(lambda x: jax.lax.complex(x, x * x), x, axes=(-1,))
    >>> jnp.imag(sums)
    Array([ 5., 50.], dtype=float32)

    Args:
      function: as in `reduced_of`. It returns complex numbers or integers, since XLA
        stores the terms of a real sum.
      *arrays: arrays with the same size of the first axis.
      axes: the axes to add over, counted from the end (negative).
    """
    return reduced_of(function, *arrays, axes=axes, combine=jnp.add, reduce=jnp.sum)


def reduced_of(
    function: Callable[..., jax.Array],
    *arrays: Any,
    axes: tuple[int, ...],
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    reduce: Callable[..., jax.Array],
) -> jax.Array:
    """Returns a function reduced over axes: `reduce(function(*arrays), axes)`.

    XLA's CPU backend stores the input of a reduction, once for each reduction. Here,
    elements are combined in chains along the first axis, in the kernel that computes
    them, which leaves an eighth to reduce.

    Args:
      function: an elementwise function, as it is applied to parts of the arrays. Arrays
        that it closes over must broadcast along the first axis.
      *arrays: arrays with the same size of the first axis.
      axes: the axes to reduce, counted from the end (negative).
      combine: the reduction of two arrays, such as `jnp.add`.
      reduce: the reduction of axes, such as `jnp.sum`.
    """
    axis = axes[0]
    size = arrays[0].shape[axis]
    # Chains must stay within the part of one device, or terms would be communicated.
    shares = jax.device_count()
    chain = next((n for n in range(8, 0, -1) if size % (n * shares) == 0), 1)
    # An axis that an explicit mesh shards cannot be split.
    if chain == 1 or any(jax.typeof(a).sharding.spec[axis] for a in arrays):
        return reduce(function(*arrays), axis=axes)

    def part(array, index):
        # Neighbours, which lie on one device if the axis is sharded.
        before, after = array.shape[:axis], array.shape[axis:][1:]
        groups = jnp.reshape(array, (*before, size // chain, chain, *after))
        return jax.lax.index_in_dim(groups, index, axis, keepdims=False)

    terms = [function(*(part(a, index) for a in arrays)) for index in range(chain)]
    return reduce(functools.reduce(combine, terms), axis=axes)


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
    if update is None:
        axes = -2 if per_column else (-2, -1)
        w_max = jnp.max(jnp.abs(cut(matrix, row_sizes, axis=-2)), axis=axes)
        return w_max if per_column else w_max[..., None]
    addends = [_in_lanes(array, row_sizes) for array in (matrix, update)]
    # The words of positive floats are ordered like them.
    words = reduced_of(
        lambda w, u: jax.lax.bitcast_convert_type(jnp.abs(w + u), jnp.int32),
        *addends,
        axes=(-3,) if per_column else (-3, -2, -1),
        combine=jnp.maximum,
        reduce=jnp.max,
    )
    w_max = jax.lax.bitcast_convert_type(words, jnp.float32)
    return w_max.reshape(*addends[0].shape[:-3], -1)


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
    # An axis that an explicit mesh shards cannot be split.
    whole = columns % _LANES or jax.typeof(tiles).sharding.spec[-1]
    size = columns if whole else _LANES
    return tiles.reshape(*tiles.shape[:-1], columns // size, size)


def reduced(maximum: jax.Array) -> jax.Array:
    """Returns the result of a reduction, nonnegative, for a pass over an array.

    XLA's CPU backend extends a reduction by the arithmetic that follows, up to a pass
    over the weights, which then reads its draws and its scalars, broadcast, from
    memory. It stops at a selection.
    """
    return jnp.where(maximum > 0, maximum, jnp.abs(maximum))


def over_columns(
    function: Callable[..., jax.Array],
    statistic: jax.Array,
    column_sizes: tuple[int, ...],
) -> jax.Array:
    """Reduces a statistic of columns over the columns of each column tile.

    >>> print(over_columns(jnp.max, jnp.array([1.0, 3.0, 2.0]), (2, 1)))
    [3. 2.]

    Args:
      function: such as `jnp.max` or `jnp.min`.
      statistic: `[..., columns]`.
      column_sizes: columns of each column tile.

    Returns:
      `[..., column tiles]`.
    """
    ends = np.cumsum(column_sizes)[:-1]
    statistic = gathered(statistic, -1)
    parts = jnp.split(statistic, ends, axis=-1)
    return jnp.concatenate([function(p, axis=-1, keepdims=True) for p in parts], -1)


def expand_columns(statistic: jax.Array, column_sizes: tuple[int, ...]) -> jax.Array:
    """Repeats a statistic of column tiles for every column.

    >>> print(expand_columns(jnp.array([3.0, 2.0]), (2, 1)))
    [3. 3. 2.]

    Args:
      statistic: `[..., column tiles]`; `[..., columns or 1]` is returned unchanged.
      column_sizes: columns of each column tile.

    Returns:
      `[..., columns or 1]`.
    """
    tiles, columns = len(column_sizes), sum(column_sizes)
    if tiles == 1 or statistic.shape[-1] != tiles or tiles == columns:
        return statistic
    return expand_rows(statistic[..., None], column_sizes)[..., 0]


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

    few = min(8, row_sizes[-1])
    first = functools.reduce(jnp.add, [tile[..., :few, :, :] for tile in tiles])
    near = _near(first, per_column=each)

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


def _near(first: jax.Array, *, per_column: bool) -> jax.Array:
    """Returns a number near the weights of tiles: the mean of a few of them.

    Args:
      first: `[..., row tiles, few, n, lanes]`, the first rows of each tile.
      per_column: take the mean of each column, or else of the first column only.

    Returns:
      `[..., row tiles, 1, n or 1, lanes or 1]`
    """
    if any(jax.typeof(first).sharding.spec[-3:]):
        # An axis that an explicit mesh shards cannot be sliced.
        axes = -3 if per_column else (-3, -2, -1)
        mean, low, high = (
            f(first, axis=axes, keepdims=True) for f in (jnp.mean, jnp.min, jnp.max)
        )
    else:
        # A chain fuses, while each reduction would be a separate kernel.
        first = first if per_column else first[..., :1, :1]
        few = jnp.split(first, first.shape[-3], -3)
        mean = sum(few[1:], few[0]) / len(few)
        low, high = (functools.reduce(f, few) for f in (jnp.minimum, jnp.maximum))
    # The mean of equal numbers may differ from them, but their spread must be zero.
    return jnp.clip(mean, low, high)


def expand_rows(statistic: jax.Array, row_sizes: tuple[int, ...]) -> jax.Array:
    """Repeats a statistic of row tiles for every row, to broadcast against a matrix.

    Args:
      statistic: `[..., row tiles, columns or 1]`.
      row_sizes: rows of each row tile.

    Returns:
      `[..., rows or 1, columns or 1]`; a single row tile stays one row.
    """
    if len(row_sizes) == 1:
        return statistic
    # Broadcasts whole tiles: a gather would keep its consumers from vectorising.
    largest = row_sizes[0]
    extra = sum(size == largest for size in row_sizes)
    if extra < len(row_sizes):
        statistic = gathered(statistic, -2)
    head = _repeat(statistic[..., :extra, :], largest)
    if extra == len(row_sizes):
        return head
    return jnp.concatenate([head, _repeat(statistic[..., extra:, :], largest - 1)], -2)


def _repeat(statistic: jax.Array, rows: int) -> jax.Array:
    *stack, tiles, columns = statistic.shape
    spread = jnp.broadcast_to(statistic[..., None, :], (*stack, tiles, rows, columns))
    return spread.reshape(*stack, tiles * rows, columns)
