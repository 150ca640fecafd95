"""Linen's OptimizedLSTMCell, with a `__call__` reimplemented gate by gate.

Flax's joins the kernels of its gates before the multiplication. On hardware, each gate
has its own crossbar, as in `LSTMCell`, whose parameters have the same paths. The other
cells consist of dense layers or convolutions and need nothing here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain._arrays.tiling import over_batch
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.signal_side import analog_dot_general, has_signal_side
from hwtrain._plan.layer import Layer, dense_layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in, keep_digital, rows_of

GATES = "ifgo"


def _gate(module: Any, inputs: Any, *args: Any, **kwargs: Any) -> Layer:
    """Returns the description of a gate for the plan."""
    cell = type(module.parent)
    rows = rows_of(plain_class(cell), "__call__")
    if all(row.written is not _call for row in rows):
        return Layer(why=f"{cell.__name__} multiplies by it in its own way")
    shape = (jnp.shape(inputs)[-1], module.features)
    return dense_layer((), shape[:1], shape[1:])


def _watched_gate(
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls the module of a gate, which returns its arrays to the cell, marked."""
    kernel, bias = next_function(*args, **kwargs)
    return marked("kernel", kernel), bias


def _call(
    cell: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    carry: tuple[jax.Array, jax.Array],
    inputs: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Reimplements `OptimizedLSTMCell.__call__` with analog gates."""
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

    c, h = carry
    i, f, g, o = (multiply(f"h{x}", h) + multiply(f"i{x}", inputs) for x in GATES)
    c = cell.gate_fn(f) * c + cell.gate_fn(i) * cell.activation_fn(g)
    h = cell.gate_fn(o) * cell.activation_fn(c)
    return (c, h), h


add_built_in(
    (nn.OptimizedLSTMCell,),
    *((f"{side}{gate}", "kernel") for side in "ih" for gate in GATES),
    kind="dense",
    written=_call,
)


keep_digital((nn.OptimizedLSTMCell,), "its gates are layers of their own, ii to ho")


add_built_in(
    (internals.GateParams,),
    "kernel",
    kind="dense",
    layer=_gate,
    watched=_watched_gate,
)
