"""Threefry-2x32, unrolled over counters so that XLA fuses it into its consumer."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def element_words(
    key_data: jax.Array, shape: Sequence[int], rounds: int = 20
) -> tuple[jax.Array, jax.Array]:
    """Returns the two words of threefry at the index of every element.

    Args:
      key_data: `[2]`, `uint32`.
      shape: shape of either word.
      rounds: number of rounds; `jax.random` uses 20.

    References:
      Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    shape = tuple(shape)
    indices = [
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))
    ]
    high, low = flat_counter(indices, shape)
    return _threefry2x32(key_data[0], key_data[1], high, low, rounds)


def fold_in(key_data: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """Folds numbers into keys, bit-equal to `jax.random.fold_in`.

    Unrolled, this is one small kernel for all numbers; on CPU, JAX's implementation is
    a loop of about thirty.

    Args:
      key_data: `[..., 2]`, `uint32`.
      number: whole numbers, taken modulo 2^32, broadcastable against `[...]`.

    Returns:
      `[..., 2]`, with the axes of both.
    """
    if isinstance(number, int):
        number = np.uint32(number % 2**32)
    return _fold_in(key_data, jnp.asarray(number).astype(jnp.uint32))


@jax.jit
def _fold_in(key_data: jax.Array, number: jax.Array) -> jax.Array:
    first, second, number = jnp.broadcast_arrays(
        key_data[..., 0], key_data[..., 1], number
    )
    folded = _threefry2x32(first, second, jnp.zeros_like(number), number, 20)
    return jnp.stack(folded, axis=-1)


def flat_counter(
    indices: Sequence[jax.Array], shape: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Returns the row-major index of elements as two 32-bit words, high and low.

    Args:
      indices: the indices along every axis, `uint32`, all of the same shape.
      shape: the array's shape. Up to 2^64 elements, each axis under 2^32.
    """
    high = low = jnp.zeros(indices[0].shape if indices else (), jnp.uint32)
    wide = math.prod(shape) > 2**32
    stride = 1
    for index, size in reversed(list(zip(indices, shape))):
        step = index * jnp.uint32(stride & 0xFFFFFFFF)
        if wide:
            high = high + _high_word(index, stride & 0xFFFFFFFF)
            high = high + index * jnp.uint32(stride >> 32)
            low = low + step
            high = high + (low < step).astype(jnp.uint32)
        else:
            low = low + step
        stride *= size
    return high, low


def _high_word(a: jax.Array, b: int) -> jax.Array:
    """Returns the upper 32 bits of the 64-bit product of two 32-bit words."""
    sixteen, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    a_low, a_high = a & mask, a >> sixteen
    b_low, b_high = jnp.uint32(b & 0xFFFF), jnp.uint32(b >> 16)
    middle = a_high * b_low + ((a_low * b_low) >> sixteen)
    carry = (middle & mask) + a_low * b_high
    return a_high * b_high + (middle >> sixteen) + (carry >> sixteen)


def _threefry2x32(
    key0: jax.Array, key1: jax.Array, x0: jax.Array, x1: jax.Array, rounds: int
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32; the key is added again after every fourth round."""
    lax = jax.lax  # skips type promotion, two thirds of the tracing
    number = functools.cache(lambda n: lax.full_like(x0, n, jnp.uint32))
    keys = [jnp.broadcast_to(key, x0.shape) for key in (key0, key1)]
    keys.append(keys[0] ^ keys[1] ^ number(_PARITY))
    x0, x1 = lax.add(x0, keys[0]), lax.add(x1, keys[1])
    for done in range(rounds):
        block, step = divmod(done, 4)
        rotation = _ROTATIONS[block % 2][step]
        x0 = lax.add(x0, x1)
        left = lax.shift_left(x1, number(rotation))
        right = lax.shift_right_logical(x1, number(32 - rotation))
        x1 = lax.bitwise_xor(lax.bitwise_or(left, right), x0)
        if step == 3:
            x0 = lax.add(x0, keys[(block + 1) % 3])
            x1 = lax.add(x1, lax.add(keys[(block + 2) % 3], number(block + 1)))
    return x0, x1
