"""Applies a row of the table of sockets to a module of either framework."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._errors import InputError
from hwtrain._flax.convolutions import analog_conv
from hwtrain._flax.einsums import analog_einsum, multiplied
from hwtrain._flax.own_products import watched_product
from hwtrain._flax.signal_side import analog_dot_general
from hwtrain._flax.stated import of_equation, refused
from hwtrain._plan.layer import Layer, joined
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import Socket, array_letters, overridden


def layer(
    row: Socket, module: Any, shape: tuple[int, ...], *args: Any, **kwargs: Any
) -> Layer:
    """Returns the description of a module for the plan.

    Args:
      row: the row.
      module: the module.
      shape: shape of its array, possibly including a stack.
      *args: arguments of the method, if it is called.
      **kwargs: its keyword arguments.
    """
    equation = row.equation
    if not isinstance(equation, str):
        equation = _of_call(row, module, equation, args, kwargs)
    rank = len(array_letters(equation))
    if row.field is not None and not hasattr(module, row.field):
        raise InputError(
            f"{type(module).__name__} is registered by hwtrain.sockets.register with "
            f"the multiplying attribute {row.field!r}, but has no attribute of this "
            "name"
        )
    if row.einsum and getattr(module, row.einsum) not in (None, jnp.einsum):
        why = f"its {row.einsum} is not jnp.einsum, and may do more than multiply"
        return refused(row.leaf, shape[-rank:], why)
    return of_equation(row.leaf, equation, tuple(shape[-rank:]))


def _of_call(
    row: Socket,
    module: Any,
    equation: Callable[..., str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """Returns the equation that a function makes of a module, or of a call of it."""
    parameters = inspect.signature(equation).parameters.values()
    needed = [x for x in parameters if x.default is x.empty and x.kind != x.VAR_KEYWORD]
    if len(needed) < 2:
        return equation(module)
    if not args and not kwargs:
        raise InputError(
            f"{type(module).__name__} is registered by hwtrain.sockets.register with "
            f"an equation of {row.array!r} that depends on the arguments of its call, "
            "but an NNX object is planned before it is called. Register a function of "
            "the object alone"
        )
    return equation(module, *args, **kwargs)


def watched(
    row: Socket, module: Any, marked: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Returns a module's attributes that multiply, changed to mark the array.

    Args:
      row: the row, which names the attribute.
      module: the module.
      marked: called with the array's path from its layer, and the array.
    """

    def operand(_: str, w: Any) -> Any:
        return marked(row.leaf, w)

    if row.dot_general:
        before = getattr(module, row.dot_general) or jax.lax.dot_general
        found: dict[str, Any] = {row.dot_general: watched_product(before, operand)}
        cls = _product_class(row, module)
        if cls is not None:
            found[f"{row.dot_general}_cls"] = lambda: watched_product(cls(), operand)
        return found
    if row.einsum:

        def einsum(equation, x, w, **options):
            return jnp.einsum(equation, x, operand("", w), **options)

        return {row.einsum: einsum}
    assert row.conv is not None

    def conv(x, kernel, *geometry, **options):
        kernel = operand("", kernel)
        return jax.lax.conv_general_dilated(x, kernel, *geometry, **options)

    return {row.conv: conv}


def analog(
    row: Socket,
    module: Any,
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
) -> dict[str, Any]:
    """Returns a module's attributes that multiply, changed to use the hardware.

    Args:
      row: the row, which names the attribute.
      module: the module.
      weight: the plan of the array.
      mode: the mode.
      leaves: the leaves beside the array in this step, as in `names_beside`.
    """
    if row.conv:
        return {row.conv: analog_conv(weight, mode, leaves)}
    if row.dot_general:
        cls = _product_class(row, module)
        before = getattr(module, row.dot_general) if cls is None else cls()
        before = before or jax.lax.dot_general
        found = {row.dot_general: analog_dot_general(weight, mode, leaves, before)}
        return found if cls is None else {**found, f"{row.dot_general}_cls": None}
    assert row.einsum is not None
    if row.built_in:
        return {row.einsum: analog_einsum(weight, mode, leaves)}
    multiply = analog_dot_general(weight, mode, leaves, jax.lax.dot_general)

    def einsum(equation, x, w, **options):
        return multiplied(multiply, equation, x, w, **options)

    return {row.einsum: einsum}


def _product_class(row: Socket, module: Any) -> Any:
    """Returns the factory that a Flax layer may have instead of a `dot_general`."""
    return getattr(module, f"{row.dot_general}_cls", None)


def overriding(cls: type, method: str) -> Layer | None:
    """Returns the layer for a class that overrides a method with rows."""
    found = overridden(cls, method)
    if found is None:
        return None
    name, built_in = found
    more = "" if built_in else "; hwtrain.sockets.register names a class"
    return Layer(why=f"it overrides {name}{more}")


def layer_of(
    rows: tuple[Socket, ...],
    module: Any,
    shape_of: Callable[[str], tuple[int, ...]],
    *args: Any,
    **kwargs: Any,
) -> Layer | None:
    """Returns the description of a module with these rows, for the plan.

    Args:
      rows: the rows of a method, built in or a user's.
      module: the module.
      shape_of: returns the shape of one of its arrays.
      *args: arguments of the method, if it is called.
      **kwargs: its keyword arguments.
    """
    if rows[0].built_in:  # one function describes all built-in rows together
        describe = rows[0].layer
        if describe is None:
            return None
        known = describe(module, *args, **kwargs)
        return dataclasses.replace(known, kind=rows[0].kind if known.weights else None)
    found = None
    for row in rows:
        assert isinstance(row.array, str)
        shape = shape_of(row.array)
        found = joined(found, layer(row, module, shape, *args, **kwargs))
    return found
