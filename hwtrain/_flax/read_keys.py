"""The keys for a layer's draws in a call."""

import contextlib
import contextvars
from collections.abc import Mapping
from typing import Any

import jax

from hwtrain._arrays.fast_random import dtype_of, fast_prng, threefry_prng
from hwtrain._arrays.random import fold_in, step_key
from hwtrain._flax.loops import place, rows, shared
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._read_keys import NOISE_KEY, effect_key

_generator: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "hwtrain_generator", default=fast_prng
)


@contextlib.contextmanager
def generator_of(key: jax.Array | None):
    """Lets the layers inside draw with the generator of the step's key.

    Reads of keys of generators that are not ours draw with Threefry of 20 rounds.

    Args:
      key: the step's key; `None` for a step that draws nothing.
    """
    generator = _generator.get()
    if key is not None:
        fast = step_key(key).dtype == dtype_of(fast_prng)
        generator = fast_prng if fast else threefry_prng
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


def keys_here(weight: AnalogWeight, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the keys of one read: of the step, the layer and effect, and the place.

    The place is the number of the call and the indices of the enclosing loops and maps;
    it does not depend on the inputs. The first call outside of all loops uses the keys
    of the step themselves.

    Args:
      weight: the plan of the layer's array.
      leaves: the leaves beside it in this step.

    Returns:
      JAX keys, `[..., effects]` like the leaf `noise_key`.
    """
    return _at_place(weight.path, step_keys(leaves))


def raw_keys_here(path: str, data: jax.Array) -> jax.Array:
    """Returns the keys of one read at a parameter that a rule names, by `keys_here`.

    Args:
      path: a name of the parameter, whose calls are counted.
      data: its leaf `noise_key`.
    """
    return _at_place(path, step_keys({NOISE_KEY.name: data}))


def _at_place(path: str, keys: jax.Array) -> jax.Array:
    call, indices = place(path)
    return _folded(keys, (call, *indices) if call or indices else ())


def at_rows(weight: AnalogWeight, keys: jax.Array) -> jax.Array:
    """Returns keys that are equal for all calls and steps, but differ between rows.

    Args:
      weight: the plan of the layer's array.
      keys: JAX keys.
    """
    return _folded(keys, rows(weight.path))


def _folded(keys: jax.Array, numbers: tuple[Any, ...]) -> jax.Array:
    with shared():
        for number in numbers:
            keys = fold_in(keys, number)
    return keys


def step_keys(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the keys of a layer's step, equal for all calls."""
    return jax.random.wrap_key_data(leaves[NOISE_KEY.name], impl=_generator.get())


def weight_key(keys: jax.Array) -> jax.Array:
    """Returns the key for weights that a layer draws itself, from a read's keys."""
    return effect_key(keys, "weight_noise")


def frozen_key(data: jax.Array) -> jax.Array:
    """Returns the key for the frozen draws of a chip's layer."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")
