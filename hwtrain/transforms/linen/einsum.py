"""Linen's Einsum, whose `__call__` is written again: it has nothing to replace."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain.plan import AnalogWeight
from hwtrain.transforms import einsum
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.linen.fields import operand_marked


def describe(
    module: Any, cls: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer | None:
    """Returns what the plan must know of an einsum layer."""
    if not issubclass(cls, nn.Einsum) or method != "__call__":
        return None
    if not owned(cls, method):
        return Layer(why="it overrides Einsum.__call__")
    _, equation = _arguments(module, *args, **kwargs)
    return einsum.describe(equation, tuple(module.shape))


def owned(cls: type, method: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a method multiplies by."""
    ours = issubclass(cls, nn.Einsum) and cls.__call__ is nn.Einsum.__call__
    return ("kernel",) if ours and method == "__call__" else ()


def _arguments(module: Any, inputs: jax.Array, einsum_str: str | None = None):
    equation = nn.merge_param("einsum_str", module.einsum_str, einsum_str)
    return inputs, equation.replace(" ", "")


def watched(
    module: Any,
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
    with operand_marked(module, marked, "kernel"):
        return next_function(*args, **kwargs)


def call(
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    context: internals.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Does what `Einsum.__call__` does, with its multiplication made analog."""
    module: Any = context.module
    inputs, equation = _arguments(module, *args, **kwargs)
    params = meta.unbox(module.variables["params"])
    kernel, bias = params["kernel"], params.get("bias")
    shape = ()
    if bias is not None:
        shape = internals.bias_shape(module, equation, inputs, kernel)
    inputs, kernel, bias = module.promote_dtype(
        inputs, kernel, bias, dtype=module.dtype
    )
    y = einsum.analog_einsum(weights["kernel"], mode, leaves["kernel"])(
        equation,
        inputs,
        kernel,
        precision=module.precision,
        preferred_element_type=module.preferred_element_type,
    )
    return y if bias is None else y + jnp.reshape(bias, shape)
