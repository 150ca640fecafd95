"""Stated products in methods of NNX objects."""

from typing import Any

import jax
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax.nnx.layers import leaves_beside
from hwtrain._flax.signal_side import has_signal_side
from hwtrain._flax.stated import Stated


def multiply(module: Any, stated: Stated, x: Any) -> jax.Array:
    """Returns an object's product: plain, with its array marked, or on hardware.

    Raises:
      ValueError: if there is no such array.
    """
    held: Any = getattr(module, stated.array, None)
    if not isinstance(held, nnx.Variable):
        raise InputError(
            f"{type(module).__name__} has no nnx.Param {stated.array!r}; it has "
            f"{sorted(k for k, v in vars(module).items() if isinstance(v, nnx.Param))}"
        )
    array = held[...]
    watch = vars(module).get("analog_watch")
    if watch is not None:
        return stated.plain(x, watch.marked(stated.leaf, array))
    for weight in vars(module).get("analog_weights", ()):
        if weight.array != stated.leaf:
            continue
        mode = module.hardware_mode
        leaves = leaves_beside(module, weight, mode)
        if has_signal_side(weight):
            return stated.analog(weight, mode, leaves, x, array)
    return stated.plain(x, array)
