r"""The generators of a step's random numbers, as implementations of JAX's keys.

`jax.random.key(seed, impl=fast_prng)` is a key like any other. Its draws cost about a
third: Threefry-2x32 has 13 rounds instead of 20, the fewest that pass every test of
BigCrush (Salmon et al., Table 2), and normal numbers come from polynomials instead of
the inverse error function. It is the default of a step; `threefry_prng` asks for the
numbers of `jax.random`.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as jex_random

from hwtrain._arrays.threefry import element_words, fold_in

_ROUNDS = 13
_ROUNDS_OF_JAX = 20

# ln(1 + f) / f for f between sqrt(1/2) - 1 and sqrt(2) - 1, to 1e-6.
_LOGARITHM = (1.00000072, -0.500007331, 0.333179295, -0.249294847)
_LOGARITHM += (0.204554603, -0.184560895, 0.117846139)


# Phi^-1((1 + u) / 2) / u as a polynomial of 2 w / 21.49 - 1, with w = -ln(1 - u^2)
# between 0 and 21.49: minimax in the relative error, 9e-6.
_QUANTILE_SCALE = 0.09307710081338882
_QUANTILE = (4.40078545, 2.33028698, -0.565474212, 0.267029196, -0.110867672)
_QUANTILE += (0.0141300391, -0.119131804, 0.110665217, 0.272592694, -0.297106832)
_QUANTILE += (-0.0822362006, 0.117338821)


def normal_from_bits(bits: jax.Array) -> jax.Array:
    r"""Maps random words to standard normal numbers.

    .. math::
        z = \pm\, \Phi^{-1}(1 - q / 2), \quad q = (b + 1/2)\, 2^{-31}

    The lowest bit is the sign, the others are b. Symmetric about zero, with an error of
    6e-5 at most, and tails to 6.3 standard deviations.

    >>> print(normal_from_bits(jnp.array([0xFFFFFFFF, 0x80000000, 0], jnp.uint32)))
    [-0.         0.6744857  6.3380117]

    Args:
      bits: `uint32`, of any shape.
    """
    b = (bits >> jnp.uint32(1)).astype(jnp.int32).astype(jnp.float32)
    q = b * np.float32(2.0**-31) + np.float32(2.0**-32)
    w = -_logarithm(q * (2 - q))  # 1 - u^2, without the loss of digits near u = 1
    z = (1 - q) * _polynomial(_QUANTILE, _QUANTILE_SCALE * w - 1)
    sign = bits << jnp.uint32(31)
    words = jax.lax.bitcast_convert_type(z, jnp.uint32) ^ sign
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def _logarithm(y: jax.Array) -> jax.Array:
    """Returns ln y of positive normal floats, from exponent and mantissa."""
    word = jax.lax.bitcast_convert_type(y, jnp.int32)
    root_half = np.float32(0.5**0.5).view(np.int32)
    exponent = (word - root_half) >> np.int32(23)
    mantissa = word - (exponent << np.int32(23))
    f = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    return exponent.astype(jnp.float32) * np.float32(np.log(2)) + f * _polynomial(
        _LOGARITHM, f
    )


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + np.float32(coefficient)
    return value


def _threefry(data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.key_data(jax.random.split(_threefry(data), shape))


def _random_bits(
    data: jax.Array, bit_width: int, shape: tuple[int, ...], *, rounds: int
) -> jax.Array:
    first, second = element_words(data, shape, rounds)
    if bit_width == 64:
        return (first.astype(jnp.uint64) << jnp.uint64(32)) | second.astype(jnp.uint64)
    return (first ^ second).astype(jnp.dtype(f"uint{bit_width}"))


def _implementation(rounds: int, name: str, tag: str) -> Any:
    defined = jex_random.define_prng_impl(
        key_shape=(2,),
        seed=_seed,
        split=_split,
        random_bits=functools.partial(_random_bits, rounds=rounds),
        fold_in=fold_in,
        name=name,
        tag=tag,
    )
    _register(defined)
    return defined


def _register(defined: Any) -> None:
    """Makes a generator known to JAX by its name, by which Orbax restores keys.

    No documented function does. Without this one, keys are saved and not restored.
    """
    home = sys.modules[type(defined._impl).__module__]
    register = getattr(home, "register_prng", None)
    if register is not None and defined._impl.name not in getattr(home, "prngs", {}):
        register(defined._impl)


@functools.cache
def dtype_of(generator: Any) -> Any:
    """Returns the dtype of a generator's keys, which tells it from others.

    >>> jax.random.key(0).dtype == dtype_of("threefry2x32")
    True

    Args:
      generator: as `impl` of `jax.random.key`.
    """
    return jax.eval_shape(lambda: jax.random.key(0, impl=generator)).dtype


fast_prng = _implementation(_ROUNDS, "hwtrain_fast", "t13")
"""The default generator of a step, for `jax.random.key(seed, impl=fast_prng)`."""

threefry_prng = _implementation(_ROUNDS_OF_JAX, "hwtrain_threefry", "t20")
"""The generator of `jax.random`, for `jax.random.key(seed, impl=threefry_prng)`: a step
then draws the numbers that `jax.random.normal` and `uniform` draw from its keys."""
