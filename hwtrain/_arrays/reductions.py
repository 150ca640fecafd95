"""Reductions of functions of arrays, without storing what they return."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_UNROLLED = 32
"""Iterations of a loop up to which LLVM unrolls it."""


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
    elements are combined in chains of up to eight along the first axis, in the kernel
    that computes them, which leaves the rest to reduce.

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
    # LLVM unrolls a short loop whole, and then reads columns one after the other.
    least = 1 if -1 in axes or size <= _UNROLLED else _UNROLLED + 1
    lengths = (n for n in range(8, 0, -1) if size % (n * shares) == 0)
    chain = next((n for n in lengths if size // n >= least), 1)
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


def reduced(maximum: jax.Array) -> jax.Array:
    """Returns the result of a reduction, nonnegative, for a pass over an array.

    XLA's CPU backend extends a reduction by the arithmetic that follows, up to a pass
    over the weights, which then reads its draws and its scalars, broadcast, from
    memory. It stops at a selection.
    """
    return jnp.where(maximum > 0, maximum, jnp.abs(maximum))
