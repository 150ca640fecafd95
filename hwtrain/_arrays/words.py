"""Integers of several words of 32 bits, the lowest word first."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Two = tuple[jax.Array, jax.Array]
Three = tuple[jax.Array, jax.Array, jax.Array]


def added(a: Two, b: Two) -> Two:
    """Returns a sum modulo 2^64."""
    low = a[0] + b[0]
    return low, a[1] + b[1] + (low < a[0])


def high_word(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the higher word of the product of two words.

    >>> print(high_word(jnp.uint32(2**31), jnp.uint32(6)))
    3
    """
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    first = a1 * b0 + (a0 * b0 >> 16)
    second = a0 * b1 + (first & 0xFFFF)
    return a1 * b1 + (first >> 16) + (second >> 16)


def product(a: jax.Array, b: jax.Array) -> Two:
    """Returns the product of two words."""
    return a * b, high_word(a, b)


def fixed_point(x: jax.Array, factor: float) -> Three:
    """Returns a product with a static number, exactly, in units of 2^-32, modulo 2^96.

    >>> print(*fixed_point(jnp.float32(2.0**33 + 2.0**10), 2.5))
    0 2560 5

    Args:
      x: numbers of at least 0, float32 or float64 (others become one of both).
      factor: a positive number, of which all digits count.
    """
    numbers, power = _digits(x)
    mantissa, exponent = math.frexp(factor)
    whole = int(mantissa * 2**53)
    found = [jnp.zeros_like(numbers[0]) for _ in range(4)]
    for n, a in enumerate(numbers):
        carry = jnp.zeros_like(a)
        for m, b in enumerate((whole % 2**32, whole >> 32)):
            b = jnp.uint32(b)
            pair = added(product(a, b), (carry, jnp.zeros_like(a)))
            found[n + m], carry = added(pair, (found[n + m], jnp.zeros_like(a)))
        found[n + 2] = carry
    return _shifted(found, power + (exponent - 53 + 32))


def _digits(x: jax.Array) -> tuple[Two, jax.Array]:
    """Returns whole numbers and the powers of two that give x with them."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    if x.dtype == jnp.float64:
        low, high = jnp.moveaxis(jax.lax.bitcast_convert_type(x, jnp.uint32), -1, 0)
        bits, bias = 20, 1075
    else:
        high = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        low, bits, bias = jnp.zeros_like(high), 23, 150
    exponent = high << 1 >> bits + 1
    hidden = jnp.where(exponent > 0, jnp.uint32(2**bits), jnp.uint32(0))
    high = high & jnp.uint32(2**bits - 1) | hidden
    both = (low, high) if x.dtype == jnp.float64 else (high, low)
    return both, jnp.maximum(exponent, 1).astype(jnp.int32) - bias


def _shifted(x: list[jax.Array], power: jax.Array) -> Three:
    """Returns the whole part of x times a power of two, modulo 2^96."""

    def word(n: jax.Array) -> jax.Array:
        found: Any = jnp.zeros_like(x[0])
        for m, each in enumerate(x):
            found = jnp.where(n == m, each, found)
        return found

    def bits(start: jax.Array) -> jax.Array:
        n, by = start >> 5, (start & 31).astype(jnp.uint32)
        # A shift by 32 bits is undefined.
        return word(n) >> by | word(n + 1) << 1 << (31 - by)

    low, middle, high = (bits(32 * n - power) for n in range(3))
    return low, middle, high
