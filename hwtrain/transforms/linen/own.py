"""Linen layers of a user's own: products that their methods state, and sockets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from hwtrain import paths
from hwtrain.plan import AnalogWeight
from hwtrain.sockets import _table
from hwtrain.transforms import socket_rows
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.linen.fields import replaced_fields
from hwtrain.transforms.stated import Stated


def multiply(module: nn.Module, stated: Stated, x: Any) -> jax.Array:
    """Returns a product of a bound module.

    To interceptors, an analog model's among them, it is a method of the module.
    """
    return internals.intercepted(_stated_product, module, stated, x)


def _stated_product(module: nn.Module, stated: Stated, x: Any) -> jax.Array:
    return stated.plain(x, _array(module, stated.array))


def _array(module: nn.Module, name: str) -> jax.Array:
    params = module.variables.get("params", {})
    if not hasattr(meta.unbox(params.get(name)), "shape"):
        raise ValueError(
            f"{type(module).__name__} {paths.join(module.path)!r} has no parameter "
            f"{name!r}, an array: make it by self.param({name!r}, ...) before. It has "
            f"{sorted(params)}"
        )
    return meta.unbox(params[name])


class OfCall:
    """The family of layers whose method states its products, or is registered.

    Attributes:
      rows: the rows of the method.
      stated: the product, where that is what is called.
    """

    def __init__(self, cls: type, method: str, args: tuple[Any, ...]):
        stated = self.is_stated(method)
        self.stated: Stated | None = args[0] if stated else None
        self.rows = () if stated else _table.rows_of(cls, method)

    @staticmethod
    def is_stated(method: str) -> bool:
        """Whether a method is the one that `multiply` shows to interceptors."""
        return method == _stated_product.__name__

    def describe(
        self, module: Any, cls: type, method: str, args: Any, kwargs: Any
    ) -> Layer | None:
        """Returns what the plan must know of a layer, or `None`."""
        if self.stated is not None:
            return self.stated.layer(_array(module, self.stated.array).shape)
        if not self.rows:
            own = method in _table.methods_of(cls)
            return socket_rows.overriding(cls) if own else None
        return socket_rows.layer_of(
            self.rows, module, lambda array: _array(module, array).shape
        )

    def owned(self, cls: type, method: str) -> tuple[str, ...]:
        """Returns the names of the arrays that a method multiplies by."""
        if self.stated is not None:
            return (self.stated.leaf,)
        return tuple(row.leaf for row in self.rows)

    def watched(
        self,
        module: Any,
        marked: Callable[[str, Any], Any],
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
        if self.stated is not None:
            array = marked(self.stated.leaf, _array(module, self.stated.array))
            return self.stated.plain(args[1], array)
        fields = {}
        for row in self.rows:
            if row.field is not None:
                before = getattr(module, row.field)
                fields[row.field] = socket_rows.watched(row, before, marked)
        return self._run(module, fields, next_function, args, kwargs)

    def call(
        self,
        weights: Mapping[str, AnalogWeight],
        leaves: Mapping[str, Mapping[str, jax.Array]],
        mode: str,
        context: internals.InterceptorContext,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer with its products made analog."""
        module: Any = context.module
        if self.stated is not None:
            (weight,), (beside,) = weights.values(), leaves.values()
            array = _array(module, self.stated.array)
            return self.stated.analog(weight, mode, beside, args[1], array)
        fields = {}
        for row in self.rows:
            if row.field is not None and row.leaf in weights:
                before = getattr(module, row.field)
                fields[row.field] = socket_rows.analog(
                    row, before, weights[row.leaf], mode, leaves[row.leaf]
                )
        return self._run(module, fields, next_function, args, kwargs)

    def _run(self, module, fields, next_function, args, kwargs):
        with replaced_fields(module, **fields):
            for row in self.rows:
                if row.call is not None:
                    return row.call(module, *args, **kwargs)
            return next_function(*args, **kwargs)
