"""Named random draws, and random numbers that fuse into their consumer.

A draw is named, never counted: its key is a function of the parameter's path, of the
effect and of the part (the device of a pair), and its counter is the element's index
in the stored array. So it does not depend on the order of calls, on the mesh, or on
how a stack of layers is sliced.
"""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hwtrain.physics import threefry, tiling
from hwtrain.physics.fast_random import fast_prng, normal_from_bits
from hwtrain.physics.threefry import element_words, flat_counter


def stable_hash(name: str) -> int:
    """Returns a 32-bit hash of `name`, the same in every process and version.

    >>> stable_hash("hidden/kernel#weight_noise#0")
    2451691387
    """
    digest = hashlib.blake2s(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def as_key(key: jax.Array) -> jax.Array:
    """Returns `key` as a typed key; raw `uint32` key data are wrapped."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def draw_key(key: jax.Array, path: str, effect: str, part: int = 0) -> jax.Array:
    """Returns the key of one named draw.

    Args:
      key: the key of the step, of the chip or of the read.
      path: path of the parameter, joined by `/`.
      effect: name of the effect, such as `"weight_noise"`. Two effects on one
        parameter must not share a key: programming noise and drift exponent would
        be the same numbers.
      part: the device of a conductance pair, or another part of one effect.
    """
    return fold_in(key, stable_hash(f"{path}#{effect}#{part}"))


def fold_in(key: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """Returns `jax.random.fold_in(key, number)`, in one kernel where it is threefry.

    Args:
      key: a JAX key.
      number: a whole number, taken modulo 2^32.
    """
    key = as_key(key)
    if not _is_threefry(key) or key.ndim:
        return jax.random.fold_in(key, number)
    data = threefry.fold_in(jax.random.key_data(key), number)
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def fold_in_bits(key: jax.Array, x: jax.Array) -> jax.Array:
    r"""Folds a hash of the bits of an array into a key.

    .. math:: h = \sum_i (2 i + 1)\, 2654435769\, \mathrm{bits}(x_i) \bmod 2^{32}

    A body that is looped over time sees the same key at every step; with this, noise is
    repeated only where the input is. Integers, so that the sum does not depend on its
    order or the mesh. No gradient passes.

    >>> key, x = jax.random.key(0), jnp.array([1.0, 2.0])
    >>> keys = [jax.random.key_data(fold_in_bits(key, v)) for v in (x, x[::-1])]
    >>> bool((keys[0] == keys[1]).any())
    False

    Args:
      key: a JAX key.
      x: floating-point numbers, of any shape.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    indices = [
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) for axis in range(x.ndim)
    ]
    _, index = flat_counter(indices, x.shape)

    def term(x, index):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return bits * (2 * index + 1) * jnp.uint32(2654435769)

    axes = tuple(range(-x.ndim, 0))
    total = tiling.sum_of(term, x, index, axes=axes) if axes else term(x, index)
    return fold_in(key, total)


def normal(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    r"""Draws standard normal numbers that XLA fuses into their consumer.

    .. math:: \xi = \sqrt 2\, \mathrm{erf}^{-1}(u), \quad u \sim U(-1, 1)

    Bit-equal to `jax.random.normal(key, shape)` in its default (partitionable) mode.
    The generator is the same threefry, but unrolled over a broadcast iota of element
    counters, so that it needs neither a loop nor communication under sharding.

    >>> key = jax.random.key(0)
    >>> bool((normal(key, (3,)) == jax.random.normal(key, (3,))).all())
    True

    Args:
      key: a JAX key. With `fast_prng`, the numbers are those of `normal_from_bits`;
        a key of another generator is handed to `jax.random.normal`.
      shape: shape of the result.
      dtype: dtype of the result. Drawn in float32 and then cast: numbers drawn in
        bfloat16 have a biased mean and no tails.

    Returns:
      Array of `shape` and `dtype`.

    References:
      Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    key = as_key(key)
    if jax.random.key_impl(key) == fast_prng:
        return normal_from_bits(jax.random.bits(key, tuple(shape))).astype(dtype)
    if not _is_threefry(key):
        return jax.random.normal(key, tuple(shape), jnp.float32).astype(dtype)
    low = np.nextafter(np.float32(-1), np.float32(0))
    unit = _unit_floats(_bits(key, shape))
    u = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    return (np.float32(np.sqrt(2)) * jax.lax.erf_inv(u)).astype(dtype)


def uniform(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws numbers uniform in [0, 1) that XLA fuses into their consumer.

    Bit-equal to `jax.random.uniform(key, shape)` in its default (partitionable) mode.

    >>> key = jax.random.key(0)
    >>> bool((uniform(key, (3,)) == jax.random.uniform(key, (3,))).all())
    True

    Args:
      key: a JAX key. A key that is not threefry is handed to `jax.random.uniform`.
      shape: shape of the result.
      dtype: dtype of the result. Drawn in float32 and then cast, so that in a
        narrower type 1 can occur by rounding.

    Returns:
      Array of `shape` and `dtype`.
    """
    key = as_key(key)
    if not _is_threefry(key):
        return jax.random.uniform(key, tuple(shape), jnp.float32).astype(dtype)
    return _unit_floats(_bits(key, shape)).astype(dtype)


def _is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _unit_floats(bits: jax.Array) -> jax.Array:
    """Maps 32 random bits to floats in [0, 1): 23 of them become the mantissa."""
    mantissa = (bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)


def _bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns 32 random bits per element: the two words of threefry, XORed."""
    first, second = element_words(jax.random.key_data(key), shape)
    return first ^ second
