"""The keys of what layers draw in a call."""

import contextlib
import contextvars
from typing import Any

import jax

from hwtrain.physics.fast_random import fast_prng
from hwtrain.physics.random import as_key, fold_in, fold_in_bits
from hwtrain.plan import AnalogWeight

_calls: contextvars.ContextVar[dict[str, int] | None] = contextvars.ContextVar(
    "hwtrain_calls", default=None
)
_generator: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "hwtrain_generator", default="threefry2x32"
)


@contextlib.contextmanager
def counted_calls(key: jax.Array | None):
    """Counts the calls of every layer inside, so that no two draw the same noise.

    Args:
      key: the step's key, whose generator the layers draw with; `None` without one.
    """
    generator = _generator.get()
    if key is not None and jax.random.key_impl(as_key(key)) == fast_prng:
        generator = fast_prng
    inside = _calls.get() is not None  # an analog model inside another
    calls = _calls.set(_calls.get() if inside else {})
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)
        _calls.reset(calls)


@contextlib.contextmanager
def as_first_call():
    """Draws what the first call of every layer draws, to compare it with itself."""
    token = _calls.set({})
    try:
        yield
    finally:
        _calls.reset(token)


def read_key(weight: AnalogWeight, noise_key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the key of one call: of the step, the call and the input's bits.

    A loop over time is traced once, and nothing that a layer sees counts its steps; so
    the input's bits tell the steps apart. Two steps whose inputs are equal to the last
    bit draw the same noise.
    """
    calls = _calls.get()
    count = 0
    if calls is not None:
        count = calls.get(weight.path, 0)
        calls[weight.path] = count + 1
    return fold_in_bits(fold_in(step_key(noise_key), count), x)


def step_key(data: jax.Array) -> jax.Array:
    """Returns the key of a layer's step, of the generator of the model's."""
    return jax.random.wrap_key_data(data, impl=_generator.get())


def frozen_key(data: jax.Array) -> jax.Array:
    """Returns the key of what is frozen in a layer of a chip."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")
