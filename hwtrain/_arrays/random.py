"""Named random draws, and random numbers that XLA fuses into their consumer.

A draw is named, never counted: its key is a function of the parameter's path, the
effect and the part (the device of a pair), and its counter is the element's index in
the stored array. It therefore does not depend on the order of calls, on the mesh, or on
how a stack of layers is sliced.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hwtrain._arrays import threefry
from hwtrain._arrays.fast_random import (
    dtype_of,
    fast_prng,
    normal_from_bits,
    threefry_prng,
)
from hwtrain._arrays.threefry import element_words
from hwtrain._errors import InputError

_OF_JAX = "threefry2x32"


def stable_hash(name: str) -> int:
    """Returns a 32-bit hash of `name`, the same in every process and version.

    >>> stable_hash("hidden/kernel#weight_noise#0")
    2451691387
    """
    digest = hashlib.blake2s(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def as_key(key: jax.Array) -> jax.Array:
    """Returns `key` as a typed key; raw `uint32` key data are wrapped.

    Raises:
      ValueError: if it is no JAX key.
    """
    dtype: Any = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype != jnp.uint32:
        raise InputError(
            "expected a JAX key, such as jax.random.key(0), or of a chip, "
            f"hwtrain.chip_key(0); got {key!r:.80}"
        )
    return jax.random.wrap_key_data(key)


def step_key(key: jax.Array) -> jax.Array:
    """Returns the key of a step, which names the generator of its draws.

    JAX's default key does not: it draws with `fast_prng`. Keys of other generators,
    such as `threefry_prng`, are returned unchanged.

    >>> step_key(jax.random.key(0)).dtype
    key<t13>

    Args:
      key: a JAX key; raw `uint32` key data are wrapped.
    """
    key = as_key(key)
    if key.dtype != dtype_of(_OF_JAX):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=fast_prng)


def draw_key(key: jax.Array, path: str, effect: str, part: int = 0) -> jax.Array:
    """Returns the key of one named draw.

    Args:
      key: the key of the step, of the chip or of the read.
      path: path of the parameter, joined by `/`.
      effect: name of the effect, such as `"weight_noise"`. Two effects on one
        parameter must not share a key, or programming noise and drift exponent would
        be the same numbers.
      part: index of the device of a conductance pair, or of another part of an effect.
    """
    return fold_in(key, stable_hash(draw_name(path, effect, part)))


def draw_name(path: str, effect: str, part: int = 0) -> str:
    """Returns the name of a draw; arguments as in `draw_key`.

    >>> draw_name("hidden/kernel", "weight_noise")
    'hidden/kernel#weight_noise#0'
    """
    return f"{path}#{effect}#{part}"


def fold_in(key: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """Returns `jax.random.fold_in(key, number)`, in a single kernel for threefry.

    >>> key, names = jax.random.key(0), jnp.arange(3)
    >>> bool((fold_in(key, names)[2] == jax.random.fold_in(key, 2)).all())
    True

    Args:
      key: JAX keys, of any shape.
      number: whole numbers, taken modulo 2^32, broadcastable against the keys.
    """
    key = as_key(key)
    if _is_fast(key) or _is_threefry(key):
        data = threefry.fold_in(jax.random.key_data(key), number)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
    if isinstance(number, int):
        number = np.uint32(number % 2**32)
    each = jnp.vectorize(jax.random.fold_in)
    return each(key, jnp.asarray(number).astype(jnp.uint32))


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
        for keys of other generators, those of `jax.random.normal`.
      shape: shape of the result.
      dtype: dtype of the result. Drawn in float32 and then cast: numbers drawn in
        bfloat16 have a biased mean and no tails.

    Returns:
      Array of `shape` and `dtype`.

    References:
      Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    key = as_key(key)
    if _is_fast(key):
        return _fast_normal(key, tuple(shape)).astype(dtype)
    if not _is_threefry(key):
        return jax.random.normal(key, tuple(shape), jnp.float32).astype(dtype)
    return _threefry_normal(jax.random.key_data(key), tuple(shape)).astype(dtype)


def stored_normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns `normal(key, shape)`, drawn once in a kernel of its own.

    For devices that need several numbers each: XLA's CPU backend would put all of their
    draws into one kernel, which newer versions take minutes to compile. A
    loop of one step prevents this, also under `vmap`, which turns the branch of `once`
    into a selection.

    >>> key = jax.random.key(0)
    >>> bool((stored_normal(key, (3,)) == normal(key, (3,))).all())
    True

    Args:
      key: a JAX key.
      shape: shape of the result.
    """

    def on_cpu(key: jax.Array) -> jax.Array:
        word = jax.random.key_data(key).ravel()[0]
        zero = word & 0  # derived from the word, to vary over the same shard_map axes
        start = word | 1, jnp.broadcast_to(zero.astype(jnp.float32), tuple(shape))

        def step(state: Any) -> Any:
            return zero, normal(key, shape)

        return jax.lax.while_loop(lambda state: state[0] != 0, step, start)[1]

    def elsewhere(key: jax.Array) -> jax.Array:
        return normal(key, shape)

    return jax.lax.platform_dependent(as_key(key), cpu=on_cpu, default=elsewhere)


def uniform(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws numbers uniform in [0, 1) that XLA fuses into their consumer.

    Bit-equal to `jax.random.uniform(key, shape)` in its default (partitionable) mode.

    >>> key = jax.random.key(0)
    >>> bool((uniform(key, (3,)) == jax.random.uniform(key, (3,))).all())
    True

    Args:
      key: a JAX key. Without threefry, the numbers are those of `jax.random.uniform`.
      shape: shape of the result.
      dtype: dtype of the result. Drawn in float32 and then cast, so that in a
        narrower type 1 can occur by rounding.

    Returns:
      Array of `shape` and `dtype`.
    """
    key = as_key(key)
    if not _is_threefry(key):
        return jax.random.uniform(key, tuple(shape), jnp.float32).astype(dtype)
    return _threefry_uniform(jax.random.key_data(key), tuple(shape)).astype(dtype)


# Jitted, so that equal draws of a program are traced and lowered once.


@functools.partial(jax.jit, static_argnums=1)
def _threefry_normal(key_data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    low = np.nextafter(np.float32(-1), np.float32(0))
    u = jnp.maximum(low, _units(key_data, shape) * (np.float32(1) - low) + low)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(u)


@functools.partial(jax.jit, static_argnums=1)
def _threefry_uniform(key_data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _units(key_data, shape)


def once(key: jax.Array, draw: Callable[[jax.Array], Any]) -> Any:
    """Returns `draw(key)`, computed once for all of its consumers.

    A draw has small inputs, so XLA recomputes it in every kernel that reads it: for
    output noise, seven times in a training step. An optimisation barrier prevents this,
    except on CPU, where it is removed before kernels are formed. There, the result of a
    branch is not recomputed, and XLA does not know that an odd word is never zero.

    >>> draw = lambda key: normal(key, (3,))
    >>> bool((once(jax.random.key(0), draw) == draw(jax.random.key(0))).all())
    True

    Args:
      key: JAX keys, at least one.
      draw: function of the keys that returns arrays. It must not close over anything
        that is differentiated.
    """

    def on_cpu(key):
        word = jax.random.key_data(key).ravel()[0]
        drawn = jax.eval_shape(draw, key)

        def nothing(key):
            # Derived from the word, to vary over the same shard_map axes as the draw.
            zero = word & 0
            return jax.tree.map(
                lambda leaf: jnp.broadcast_to(zero.astype(leaf.dtype), leaf.shape),
                drawn,
            )

        return jax.lax.cond(_always(word), draw, nothing, key)

    def elsewhere(key):
        return jax.lax.optimization_barrier(draw(key))

    return jax.lax.platform_dependent(key, cpu=on_cpu, default=elsewhere)


@jax.custom_batching.custom_vmap
def _always(word: jax.Array) -> jax.Array:
    """Returns true, which XLA does not know, and which is the same for a whole vmap.

    With a condition for each element, a branch would become a selection.
    """
    return (word | 1) != 0


@_always.def_vmap
def _always_of_batch(
    size: int, batched: list[bool], words: jax.Array
) -> tuple[jax.Array, bool]:
    del size, batched
    return _always(jnp.sum(words, dtype=words.dtype)), False


def _is_fast(key: jax.Array) -> bool:
    return key.dtype == dtype_of(fast_prng)


def _is_threefry(key: jax.Array) -> bool:
    return key.dtype in (dtype_of(threefry_prng), dtype_of(_OF_JAX))


# Compiled as a whole also where it is called by itself: other roundings otherwise.
@functools.partial(jax.jit, static_argnums=1)
def _fast_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return normal_from_bits(jax.random.bits(key, shape))


def _units(key_data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns floats in [0, 1): 23 bits of the two words, XORed, as a mantissa."""
    first, second = element_words(key_data, shape)
    mantissa = ((first ^ second) >> jnp.uint32(9)) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
