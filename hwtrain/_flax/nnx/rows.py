"""Applies rows of the table of sockets to NNX objects."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax import socket_rows
from hwtrain._flax.nnx import convolution as _convolution  # noqa: F401
from hwtrain._flax.nnx import dense as _dense  # noqa: F401
from hwtrain._flax.nnx import digital as _digital  # noqa: F401
from hwtrain._flax.nnx import einsum as _einsum  # noqa: F401
from hwtrain._flax.nnx import embed as _embed  # noqa: F401
from hwtrain._flax.nnx import lora as _lora  # noqa: F401
from hwtrain._flax.nnx.own import Watch
from hwtrain._flax.nnx.stand_ins import marking_promotion, stand_in
from hwtrain._plan.layer import Layer, joined
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets import _table as table


def describe(module: Any, cls: type, built_in: bool | None = None) -> Layer | None:
    """Returns the description of an object from the rows of a class, for the plan.

    Args:
      module: the object.
      cls: its class, or one of its parents.
      built_in: `True` for only built-in rows, `False` for only users' rows.
    """

    def shape_of(array: str) -> tuple[int, ...]:
        found: Any = getattr(module, array, None)
        if not isinstance(found, nnx.Param):
            raise InputError(
                f"{cls.__name__} is registered with the array {array!r}, which must "
                f"be an nnx.Param; one of its objects has {type(found).__name__} there"
            )
        return tuple(found.shape)

    layer = None
    for method in table.methods_of(cls, built_in):
        rows = table.rows_of(cls, method, built_in)
        # All methods of a Flax class multiply by the same arrays.
        if not rows or (layer is not None and rows[0].built_in):
            continue
        found = socket_rows.layer_of(rows, module, shape_of)
        layer = layer if found is None else joined(layer, found)
    if layer is not None:
        return layer
    methods = table.methods_of(cls, built_in)
    found = (socket_rows.overriding(cls, method) for method in methods)
    return next((layer for layer in found if layer is not None), None)


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method that marks its arrays by `marked(leaf, array)`."""
    rows = table.rows_of(base, method)
    if rows[0].built_in:
        return _method(layer, base, method, _watched(layer, rows, marked))
    watch = Watch(marked)
    called = _method(layer, base, method, _watched(layer, rows, watch.marked))

    def checked(*args: Any, **kwargs: Any) -> Any:
        of_module = vars(layer).get("analog_watch", watch)
        result = called(*args, **kwargs)
        for row in rows:
            if row.leaf not in watch.seen | of_module.seen:
                raise InputError(
                    f"{base.__name__} is registered by hwtrain.sockets.register with "
                    f"{row.array!r}, but {base.__name__}.{method} does not multiply by "
                    "it as registered. Multiply by hwtrain.analog_einsum(self, "
                    f"{row.array!r}, ...) there, or keep it digital by a Rule(..., "
                    "None) before the others"
                )
        return result

    return checked


def _watched(
    layer: Any, rows: tuple[table.Socket, ...], marked: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Returns a layer's attributes that multiply, changed to mark its arrays."""
    fields = {}
    for row in rows:
        if row.field is not None:
            fields |= socket_rows.watched(row, layer, marked)
    if rows[0].built_in:
        if not fields:
            leaves = (row.leaf for row in rows)
            fields["promote_dtype"] = marking_promotion(layer, marked, *leaves)
        if hasattr(layer, "mask"):
            # The plan has the mask, and the analog layer applies it.
            fields["mask"] = None
    return fields


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
    """Calls a layer with its products made analog."""
    fields = {}
    for row in table.rows_of(base, method):
        if row.written is not None:
            return row.written(layer, weights, leaves, mode, *args, **kwargs)
        if row.field is not None and row.leaf in weights:
            weight, beside = weights[row.leaf], leaves[row.leaf]
            fields |= socket_rows.analog(row, layer, weight, mode, beside)
    return _method(layer, base, method, fields)(*args, **kwargs)


def _method(
    layer: Any, base: type, method: str, fields: dict[str, Any]
) -> Callable[..., Any]:
    """Returns a layer's method with other attributes, or its reimplementation."""
    if fields:
        layer = stand_in(layer, base, **fields)
    for row in table.rows_of(base, method):
        if row.call is not None:
            return functools.partial(row.call, layer)
    return functools.partial(getattr(base, method), layer)
