"""NNX layers of a user's own: those that `hwtrain.sockets.register` names."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.sockets import _table
from hwtrain.transforms import socket_rows
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.nnx.stand_in import stand_in


class Watch:
    """Marks what a module of an abstract call multiplies by, where its methods say it.

    Attributes:
      marked: called with the path of an array from its module, and the array.
      seen: the paths of those that were.
    """

    def __init__(self, marked: Callable[[str, Any], Any]):
        self.seen: set[str] = set()
        self._marked = marked

    def marked(self, leaf: str, array: Any) -> Any:
        """Returns an array marked."""
        self.seen.add(leaf)
        return self._marked(leaf, array)


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of a layer that is registered."""
    rows = _rows(cls)
    if not rows:
        return socket_rows.overriding(cls)

    def shape_of(array: str) -> tuple[int, ...]:
        found: Any = getattr(module, array, None)
        if not isinstance(found, nnx.Param):
            raise ValueError(
                f"{cls.__name__} is registered with the array {array!r}, which must "
                f"be an nnx.Param; one of its objects has {type(found).__name__} there"
            )
        return tuple(found.shape)

    return socket_rows.layer_of(rows, module, shape_of)


def _rows(cls: type) -> tuple[_table.Socket, ...]:
    methods = _table.methods_of(cls)
    return tuple(row for method in methods for row in _table.rows_of(cls, method))


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that multiply, with the names of the arrays they need."""
    arrays: dict[str, tuple[str, ...]] = {}
    for row in _rows(cls):
        arrays[row.method] = (*arrays.get(row.method, ()), row.leaf)
    return arrays


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""
    rows, watch = _table.rows_of(base, method), Watch(marked)
    fields = {
        row.field: socket_rows.watched(row, getattr(layer, row.field), watch.marked)
        for row in rows
        if row.field is not None
    }
    called = _method(layer, base, method, fields)

    def checked(*args: Any, **kwargs: Any) -> Any:
        of_module = vars(layer).get("analog_watch", watch)
        result = called(*args, **kwargs)
        for row in rows:
            if row.leaf not in watch.seen | of_module.seen:
                raise ValueError(
                    f"{base.__name__} is registered by hwtrain.sockets.register with "
                    f"{row.array!r}, and {base.__name__}.{method} does not multiply by "
                    "it in the way that the row says. Multiply by hwtrain.analog_einsum"
                    f"(self, {row.array!r}, ...) there, or keep it digital by "
                    "a Rule(..., None) before the others"
                )
        return result

    return checked


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
    fields = {
        row.field: socket_rows.analog(
            row, getattr(layer, row.field), weights[row.leaf], mode, leaves[row.leaf]
        )
        for row in _table.rows_of(base, method)
        if row.field is not None and row.leaf in weights
    }
    return _method(layer, base, method, fields)(*args, **kwargs)


def _method(
    layer: Any, base: type, method: str, fields: dict[str, Any]
) -> Callable[..., Any]:
    """Returns a method of a layer with other attributes, or as it is written again."""
    if fields:
        layer = stand_in(layer, base, **fields)
    for row in _table.rows_of(base, method):
        if row.call is not None:
            return functools.partial(row.call, layer)
    return functools.partial(getattr(base, method), layer)
