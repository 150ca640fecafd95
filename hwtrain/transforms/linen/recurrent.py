"""Linen's OptimizedLSTMCell, whose `__call__` is written again, gate by gate.

It joins the kernels of its gates before it multiplies. On hardware each gate is a
crossbar of its own, as in `LSTMCell`, whose parameters have the same paths. The other
cells are made of dense layers or convolutions, and need nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain.physics.tiling import over_batch
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.layer import Layer, LayerWeight
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.signal_side import analog_dot_general, has_signal_side

GATES = "ifgo"


def describe(
    module: Any, cls: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer | None:
    """Returns what the plan must know of a gate, or of the cell around its gates."""
    if issubclass(cls, nn.OptimizedLSTMCell):
        return Layer(why="its gates are layers of their own, ii to ho")
    if not issubclass(cls, internals.GateParams) or method != "__call__":
        return None
    cell = type(module.parent)
    if not owned(getattr(cell, "_hwtrain_base", cell), "__call__"):
        return Layer(why=f"{cell.__name__} multiplies by it in its own way")
    inputs: Any = args[0] if args else kwargs["inputs"]
    shape = (jnp.shape(inputs)[-1], module.features)
    return Layer(
        kind="dense", weights=(LayerWeight(shape=shape, rows=(0,), columns=(1,)),)
    )


def owned(cls: type, method: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a method multiplies by."""
    own = issubclass(cls, nn.OptimizedLSTMCell) and (
        cls.__call__ is nn.OptimizedLSTMCell.__call__
    )
    names = tuple(f"{side}{gate}/kernel" for side in "ih" for gate in GATES)
    return names if own and method == "__call__" else ()


def watched(
    module: Any,
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
    del module
    kernel, bias = next_function(*args, **kwargs)
    return marked("kernel", kernel), bias


def call(
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    context: internals.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Does what `OptimizedLSTMCell.__call__` does, with analog gates."""
    cell: Any = context.module
    params = meta.unbox(cell.variables["params"])

    def multiply(name: str, x: jax.Array) -> jax.Array:
        kernel, bias = params[name]["kernel"], params[name].get("bias")
        x, kernel, bias = internals.promoted(x, kernel, bias, dtype=cell.dtype)
        dot_general: Callable[..., jax.Array] = jax.lax.dot_general
        weight = weights.get(f"{name}/kernel")
        if weight is not None and has_signal_side(weight):
            found = leaves[f"{name}/kernel"]
            dot_general = analog_dot_general(weight, mode, found, dot_general)
        y = dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        return y if bias is None else y + over_batch(bias, y)

    def step(carry: tuple[jax.Array, jax.Array], inputs: jax.Array):
        c, h = carry
        i, f, g, o = (multiply(f"h{x}", h) + multiply(f"i{x}", inputs) for x in GATES)
        c = cell.gate_fn(f) * c + cell.gate_fn(i) * cell.activation_fn(g)
        h = cell.gate_fn(o) * cell.activation_fn(c)
        return (c, h), h

    return step(*args, **kwargs)
