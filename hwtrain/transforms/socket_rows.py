"""What a row of the table of sockets means for a module of either framework."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain.plan import AnalogWeight
from hwtrain.sockets._table import Socket, array_letters, methods_of, overridden
from hwtrain.transforms.einsum import multiplied
from hwtrain.transforms.layer import Layer, joined
from hwtrain.transforms.own_products import watched_product
from hwtrain.transforms.signal_side import analog_dot_general
from hwtrain.transforms.stated import of_equation, refused


def layer(row: Socket, module: Any, shape: tuple[int, ...]) -> Layer:
    """Returns what the plan must know of a module.

    Args:
      row: the row.
      module: the module.
      shape: shape of its array, which may be that of a stack.
    """
    given = row.equation
    equation = given if isinstance(given, str) else given(module)
    rank = len(array_letters(equation))
    if row.field is not None and not hasattr(module, row.field):
        raise ValueError(
            f"{type(module).__name__} is registered by hwtrain.sockets.register with "
            f"the attribute {row.field!r} that multiplies, and has none of this name"
        )
    if row.einsum and getattr(module, row.einsum) not in (None, jnp.einsum):
        why = f"its {row.einsum} is not jnp.einsum, and may do more than multiply"
        return refused(row.leaf, shape[-rank:], why)
    return of_equation(row.leaf, equation, tuple(shape[-rank:]))


def watched(
    row: Socket, before: Any, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns the attribute that multiplies, with the array marked.

    Args:
      row: the row.
      before: what the module has there.
      marked: called with the array's path from its layer, and the array.
    """
    if row.dot_general:
        dot_general = before or jax.lax.dot_general
        return watched_product(dot_general, lambda _, w: marked(row.leaf, w))

    def einsum(equation, x, w, **options):
        return jnp.einsum(equation, x, marked(row.leaf, w), **options)

    return einsum


def analog(
    row: Socket,
    before: Any,
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
) -> Callable[..., Any]:
    """Returns the attribute that multiplies as hardware does.

    Args:
      row: the row.
      before: what the module has there.
      weight: the plan of the array.
      mode: the mode.
      leaves: what is beside the array in this step, of `names_beside`.
    """
    dot_general = before if row.dot_general and before else jax.lax.dot_general
    multiply = analog_dot_general(weight, mode, leaves, dot_general)
    if row.dot_general:
        return multiply

    def einsum(equation, x, w, **options):
        return multiplied(multiply, equation, x, w, **options)

    return einsum


def overriding(cls: type) -> Layer | None:
    """Returns the layer of a class that overrides a method of a registered one."""
    for method in methods_of(cls):
        base = overridden(cls, method)
        if base is not None:
            why = f"it overrides {base.__name__}.{method}"
            return Layer(why=f"{why}; hwtrain.sockets.register names a class")
    return None


def layer_of(
    rows: tuple[Socket, ...], module: Any, shape_of: Callable[[str], tuple[int, ...]]
) -> Layer | None:
    """Returns what the plan must know of a module with these rows.

    Args:
      rows: the rows of its class.
      module: the module.
      shape_of: returns the shape of one of its arrays.
    """
    found = None
    for row in rows:
        found = joined(found, layer(row, module, shape_of(row.array)))
    return found
