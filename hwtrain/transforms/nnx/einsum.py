"""NNX's Einsum: a stand-in has another `einsum_op`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms import einsum
from hwtrain.transforms.layer import Layer, calls_as
from hwtrain.transforms.nnx.stand_in import stand_in


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
    return {"__call__": ("kernel",)} if calls_as(cls, (nnx.Einsum,)) else {}


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""

    def einsum(equation, x, kernel, **options):
        return jnp.einsum(equation, x, marked("kernel", kernel), **options)

    return getattr(stand_in(layer, base, einsum_op=einsum), method)


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
    copy = stand_in(layer, base, einsum_op=analog)
    return getattr(base, method)(copy, *args, **kwargs)
