"""Linen's Dense and DenseGeneral: their `dot_general` is replaced for a call."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.layer import Layer, calls_as, dense_layer
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.linen.fields import replaced_fields
from hwtrain.transforms.own_products import watched_product
from hwtrain.transforms.signal_side import analog_dot_general

CLASSES = (nn.Dense, nn.DenseGeneral)


def describe(
    module: Any, cls: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer | None:
    """Returns what the plan must know of a dense layer."""
    base = next((base for base in CLASSES if issubclass(cls, base)), None)
    if base is None or method != "__call__":
        return None
    inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
    if not owned(cls, method):
        return Layer(why=f"it overrides {base.__name__}.__call__")
    if not jnp.ndim(inputs):
        return Layer(why="it is called without an array")
    shape = jnp.shape(inputs)
    features, axis, batch = (
        tuple(given) if isinstance(given, Iterable) else (given,)
        for given in (
            module.features,
            getattr(module, "axis", -1),
            getattr(module, "batch_dims", ()),
        )
    )
    # Flax takes axes in the order of the inputs, however they are given.
    stack = tuple(shape[i] for i in sorted(i % len(shape) for i in batch))
    sizes = tuple(shape[i] for i in sorted(i % len(shape) for i in axis))
    return dense_layer(stack, sizes, features)


def owned(cls: type, method: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a method multiplies by."""
    ours = method == "__call__" and calls_as(cls, CLASSES)
    return ("kernel",) if ours else ()


def watched(
    module: Any,
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
    cls = module.dot_general_cls
    before = module.dot_general or jax.lax.dot_general

    made = None if cls is None else lambda: watched_product(cls(), marked)
    with replaced_fields(
        module, dot_general=watched_product(before, marked), dot_general_cls=made
    ):
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
    """Calls a dense layer with its matrix multiplication made analog."""
    module: Any = context.module
    before = module.dot_general
    if module.dot_general_cls is not None:
        before = module.dot_general_cls()
    analog = analog_dot_general(
        weights["kernel"], mode, leaves["kernel"], before or jax.lax.dot_general
    )
    with replaced_fields(module, dot_general=analog, dot_general_cls=None):
        return next_function(*args, **kwargs)
