"""NNX's Einsum: a stand-in has another `einsum_op`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms import einsum
from hwtrain.transforms.layer import Layer


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of an einsum layer."""
    if not issubclass(cls, nnx.Einsum):
        return None
    if not owned(cls):
        return Layer(why="it overrides Einsum.__call__")
    if module.einsum_op is not jnp.einsum:
        return Layer(why="it has an einsum_op of its own")
    return einsum.describe(module.einsum_str, tuple(module.kernel_shape))


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that multiply, with the names of the arrays they need."""
    ours = issubclass(cls, nnx.Einsum) and cls.__call__ is nnx.Einsum.__call__
    return {"__call__": ("kernel",)} if ours else {}


def call(
    layer: Any,
    base: type,
    method: str,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls an einsum layer with its multiplication made analog."""
    analog = einsum.analog_einsum(weights["kernel"], mode, leaves["kernel"])
    stand_in: Any = object.__new__(base)
    stand_in.__dict__.update(layer.__dict__, einsum_op=analog)
    return getattr(base, method)(stand_in, *args, **kwargs)
