"""Crossbar tiles: the cutting of matrices, and their joining.

A matrix `[..., rows, columns]` (rows are inputs) is cut into row tiles, whose partial
sums are added digitally, and column tiles, whose outputs are concatenated. Statistics
of tiles are expanded to the rows or the columns of each.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


def cut_matrix(
    matrix: jax.Array, row_sizes: tuple[int, ...], column_sizes: tuple[int, ...]
) -> jax.Array:
    """Cuts a matrix of weights into tiles, for a product.

    Args:
      matrix: `[rows, columns]`.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.

    Returns:
      `[row tiles, rows, column tiles, columns]`.
    """
    tiles = cut(cut(matrix, row_sizes, axis=-2), column_sizes, axis=-1)
    if jax.device_count() == 1 or len(row_sizes) == len(column_sizes) == 1:
        return tiles
    return _placed_last(tiles)


@jax.custom_jvp
def _placed_last(array):
    """Returns an array whose place XLA passes on after those of activations.

    Weights and activations may be spread by the same axis of a mesh. Where they meet in
    a product of tiles, the first to arrive stays, and the other operand is collected.
    XLA passes a place through elementwise operations, reshapes and transpositions
    first; these two follow later, and disappear afterwards.
    """
    return jnp.broadcast_to(array, (2, *array.shape))[0]


@_placed_last.defjvp
def _placed_last_jvp(primals, tangents):
    return _placed_last(*primals), tangents[0]


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


def merged(array: jax.Array, start: int, stop: int) -> jax.Array:
    """Returns an array with consecutive axes merged into one.

    Of axes that an explicit mesh shards, only the first can stay so: the devices that
    share a later one hold no part of the merged axis in one piece.

    Args:
      array: the array.
      start: the first axis, not negative.
      stop: the axis after the last; `start` for no axes, which gives one of size 1.
    """
    if stop - start == 1:
        return array
    for axis in range(start + 1, stop):
        array = gathered(array, axis)
    return jax.lax.collapse(array, start, stop)


def parted(array: jax.Array, axis: int, sizes: Sequence[int]) -> jax.Array:
    """Undoes `merged`: returns an array with one axis split into several.

    If an explicit mesh shards the axis, the first of the new ones is sharded so, where
    its size allows it.

    Args:
      array: the array.
      axis: the axis, not negative.
      sizes: the sizes of the new axes; none for an axis of size 1.
    """
    if len(sizes) == 1:
        return array
    sharding = jax.typeof(array).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    if sizes and sizes[0] % math.prod(sharding.mesh.shape[name] for name in names):
        array = gathered(array, axis)
    return array.reshape(*array.shape[:axis], *sizes, *array.shape[axis + 1 :])


def may_be_spread(array: jax.Array, *axes: int) -> bool:
    """Whether axes may lie on several devices, which would communicate parts of them.

    Only the types of an explicit mesh say so; else a program that is traced does not
    know where its arrays will lie.

    Args:
      array: the array.
      *axes: the axes.
    """
    spec = jax.typeof(array).sharding.spec
    return jax.device_count() > 1 or any(spec[axis] for axis in axes)


def placed_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Returns an array with the explicit sharding of another one of its shape."""
    sharding = jax.typeof(other).sharding
    if jax.typeof(array).sharding == sharding:
        return array
    return jax.sharding.reshard(array, sharding)


def placed_along(array: jax.Array, other: jax.Array, count: int) -> jax.Array:
    """Returns an array whose first axes have the explicit sharding of another one's.

    Args:
      array: the array.
      other: the other array, with first axes of the same sizes.
      count: number of axes.
    """
    spec, sharding = jax.typeof(array).sharding.spec, jax.typeof(other).sharding
    if spec[:count] == sharding.spec[:count]:
        return array
    spec = jax.sharding.PartitionSpec(*sharding.spec[:count], *spec[count:])
    return jax.sharding.reshard(array, sharding.update(spec=spec))


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
    if may_be_spread(array, axis):
        return jnp.sum(array, axis)
    tiles = [
        jax.lax.index_in_dim(array, i, axis, keepdims=False)
        for i in range(array.shape[axis])
    ]
    return sum(tiles[1:], tiles[0])


@add_tiles.defjvp
def _add_tiles_jvp(axis, primals, tangents):
    return add_tiles(primals[0], axis), jnp.sum(tangents[0], axis)


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
