"""Applies rows of the table of sockets to the call of a Linen module."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hwtrain._flax import socket_rows
from hwtrain._flax.linen import convolution as _convolution  # noqa: F401
from hwtrain._flax.linen import dense as _dense  # noqa: F401
from hwtrain._flax.linen import digital as _digital  # noqa: F401
from hwtrain._flax.linen import einsum as _einsum  # noqa: F401
from hwtrain._flax.linen import embed as _embed  # noqa: F401
from hwtrain._flax.linen import recurrent as _recurrent  # noqa: F401
from hwtrain._flax.linen.fields import marking_promotion, replaced_fields
from hwtrain._flax.linen.own import array_of, is_stated
from hwtrain._flax.stated import Stated
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets import _table as table


class OfCall:
    """The rows of a call, or the product that a method's call states.

    Attributes:
      rows: the rows of the method.
      stated: the stated product, if the call is one.
    """

    def __init__(self, cls: type, method: str, args: tuple[Any, ...]):
        stated = is_stated(method)
        self._cls, self._method = cls, method
        self.stated: Stated | None = args[0] if stated else None
        self.rows: tuple[table.Socket, ...] = ()
        if not stated:
            self.rows = table.rows_of(cls, method)

    @property
    def owned(self) -> tuple[str, ...]:
        """The paths from the module of the arrays that the method multiplies by."""
        if self.stated is not None:
            return (self.stated.leaf,)
        return tuple(row.leaf for row in self.rows)

    def describe(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Layer | None:
        """Returns the description of a layer for the plan, or `None`."""
        if self.stated is not None:
            return self.stated.layer(array_of(module, self.stated.array).shape)
        if not self.rows:
            return socket_rows.overriding(self._cls, self._method)

        def shape_of(name: str) -> tuple[int, ...]:
            return array_of(module, name).shape

        return socket_rows.layer_of(self.rows, module, shape_of, *args, **kwargs)

    def watched(
        self,
        module: Any,
        marked: Callable[[str, Any], Any],
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer with its arrays marked by `marked(leaf, array)`."""
        if self.stated is not None:
            array = marked(self.stated.leaf, array_of(module, self.stated.array))
            return self.stated.plain(args[1], array)
        fields = {}
        for row in self.rows:
            if row.watched is not None:
                return row.watched(marked, next_function, args, kwargs)
            if row.field is not None:
                fields |= socket_rows.watched(row, module, marked)
        if self.rows[0].built_in:
            if not fields:
                promote = marking_promotion(module, marked, *self.owned)
                fields["promote_dtype"] = promote
            if hasattr(module, "mask"):
                # The plan has the mask, and the analog layer applies it.
                fields["mask"] = None
        return self._run(module, fields, next_function, args, kwargs)

    def call(
        self,
        weights: Mapping[str, AnalogWeight],
        leaves: Mapping[str, Mapping[str, jax.Array]],
        mode: str,
        module: Any,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer with its products made analog.

        Args:
          weights: the plans of its arrays, by their paths from the module.
          leaves: the leaves beside them in this step, by the same paths.
          mode: the mode.
          module: the layer.
          next_function: its own method.
          args: arguments of the call.
          kwargs: keyword arguments of the call.
        """
        if self.stated is not None:
            (weight,), (beside,) = weights.values(), leaves.values()
            array = array_of(module, self.stated.array)
            return self.stated.analog(weight, mode, beside, args[1], array)
        fields = {}
        for row in self.rows:
            if row.written is not None:
                return row.written(module, weights, leaves, mode, *args, **kwargs)
            if row.field is not None and row.leaf in weights:
                weight, beside = weights[row.leaf], leaves[row.leaf]
                fields |= socket_rows.analog(row, module, weight, mode, beside)
        return self._run(module, fields, next_function, args, kwargs)

    def _run(self, module, fields, next_function, args, kwargs):
        with replaced_fields(module, **fields):
            for row in self.rows:
                if row.call is not None:
                    return row.call(module, *args, **kwargs)
            return next_function(*args, **kwargs)
