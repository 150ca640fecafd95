"""An identity operation that shows along which axis `vmap` stacks an array.

The program of a mapped product does not show which axis of its operand counts the
layers. This operation moves that axis to the front: if it is not there already, a
transposition appears before the operation.
"""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

NAME = "hwtrain_stack_axis_first"

_first = Primitive(NAME)


def stack_axis_first(array: jax.Array) -> jax.Array:
    """Returns an array with the axis that `vmap` maps moved first, in traces only."""
    return _first.bind(array)


def _same(array: Any) -> Any:
    return array


def _batch(args: Any, axes: Any) -> tuple[jax.Array, int]:
    (array,), (axis,) = args, axes
    return _first.bind(jax.numpy.moveaxis(array, axis, 0) if axis else array), 0


_first.def_impl(_same)


_first.def_abstract_eval(_same)


batching.primitive_batchers[_first] = _batch


ad.deflinear2(_first, lambda cotangent, _: [cotangent])
