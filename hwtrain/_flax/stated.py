"""A product that a layer's method states by the name of its array and its axes.

An array has no path, so a value alone could not be planned. The two frameworks find the
array and the leaves beside it; the rest is here.
"""

import string
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax import einsums
from hwtrain._flax.signal_side import analog_dot_general
from hwtrain._plan.layer import Layer, LayerWeight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import array_letters

Axes = tuple[int, ...]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]


class Stated(NamedTuple):
    """A product of inputs and an array of a layer.

    Attributes:
      array: the array's name in the layer.
      equation: the equation of inputs, array and result; empty if `numbers` is given.
      numbers: as for `jax.lax.dot_general`, with the inputs first.
      dtype: the dtype to compute in; `None` for the common dtype of both.
      options: names and values of further arguments.
    """

    array: str
    equation: str = ""
    numbers: DimensionNumbers | None = None
    dtype: DTypeLike | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def leaf(self) -> str:
        """The array's path from its layer."""
        return paths.join([self.array])

    def plain(self, x: Any, w: jax.Array) -> jax.Array:
        """Returns the product as JAX computes it."""
        x, w = self._promoted(x, w)
        options = dict(self.options)
        if self.numbers is None:
            return jnp.einsum(self.equation, x, w, **options)
        return jax.lax.dot_general(x, w, self.numbers, **options)

    def analog(
        self,
        weight: AnalogWeight,
        mode: str,
        leaves: Mapping[str, jax.Array],
        x: Any,
        w: jax.Array,
    ) -> jax.Array:
        """Returns the product as computed by the hardware.

        Args:
          weight: the plan of the array.
          mode: the mode.
          leaves: the leaves beside the array in this step, as in `names_beside`.
          x: the inputs.
          w: the array in the layer.

        Raises:
          ValueError: if it sums over other axes than planned.
        """
        outside = len(weight.shape) - w.ndim
        planned = tuple(axis - outside for axis in weight.rows)
        rows = self.layer(w.shape).weights[0].rows
        if rows != planned:
            raise InputError(
                f"{weight.path}: hwtrain.sockets.register says that the axes {planned} "
                f"of it are summed over, and {self} sums over {rows}. Register it with "
                "the equation of its call"
            )
        x, w = self._promoted(x, w)
        multiply = analog_dot_general(weight, mode, leaves, jax.lax.dot_general)
        options = dict(self.options)
        if self.numbers is None:
            return einsums.multiplied(multiply, self.equation, x, w, **options)
        (of_x, of_w), batch = self.numbers
        pairs = sorted(zip(of_w, of_x, strict=True))
        summed = tuple(axis for _, axis in pairs), tuple(axis for axis, _ in pairs)
        return multiply(x, w, (summed, batch), **options)

    def layer(self, shape: tuple[int, ...]) -> Layer:
        """Returns the description of the layer for the plan.

        Args:
          shape: the array's shape in the layer.
        """
        if self.numbers is None:
            return of_equation(self.leaf, self.equation, shape)
        (_, rows), (_, stack) = self.numbers
        if tuple(stack) != tuple(range(len(stack))):
            why = f"{self} has batch axes that do not lead in the array, in their order"
            return refused(self.leaf, shape, why)
        if not rows:
            return refused(self.leaf, shape, f"{self} sums over no axis")
        return _layer(self.leaf, shape, tuple(sorted(rows)), len(stack))

    def _promoted(self, x: Any, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The same promotion as in Flax's layers.
        dtype = self.dtype
        if dtype is None:
            dtype = jnp.result_type(x, w)
            if not jnp.issubdtype(dtype, jnp.inexact):
                dtype = jnp.promote_types(jnp.float32, dtype)
        return jnp.asarray(x, dtype), jnp.asarray(w, dtype)

    def __str__(self) -> str:
        """Returns the text of the call, with its axes."""
        if self.numbers is None:
            return f"analog_einsum(self, {self.array!r}, {self.equation!r}, x)"
        return f"analog_dot_general(self, {self.array!r}, x, {self.numbers})"


def of_equation(leaf: str, equation: str, shape: tuple[int, ...]) -> Layer:
    """Returns the description of a layer that computes an equation, for the plan.

    >>> of_equation("w", "...i,oi->...o", (4, 3)).weights[0].rows
    (1,)
    >>> ((leaf, why),) = of_equation("w", "b,b->b", (3,)).refused
    >>> why.partition(".")[0]
    "its equation 'b,b->b' sums over no axis"

    Args:
      leaf: path of its array from the layer.
      equation: the equation of inputs, array and result.
      shape: the array's shape in the layer.

    Raises:
      ValueError: if it is not an equation of two operands, or for another rank.
    """
    letters = array_letters(equation)
    if "." not in letters and len(letters) != len(shape):
        raise InputError(
            f"{equation!r} names {len(letters)} axes of {leaf}, which has the shape "
            f"{tuple(shape)}"
        )
    found = einsums.describe(equation, shape)
    if found.kind is None:
        return refused(leaf, shape, found.why)
    (weight,) = found.weights
    stack = len(shape) - len(weight.rows) - len(weight.columns)
    return _layer(leaf, shape, weight.rows, stack)


def _layer(leaf: str, shape: tuple[int, ...], rows: Axes, stack: int) -> Layer:
    """Returns a layer with an array; its equation fits inputs of any rank."""
    letters = string.ascii_letters[: len(shape)]
    lead, of_rows = letters[:stack], "".join(letters[axis] for axis in rows)
    columns = tuple(axis for axis in range(stack, len(shape)) if axis not in rows)
    result = lead + "..." + "".join(letters[axis] for axis in columns)
    weight = LayerWeight(
        leaf=leaf,
        shape=tuple(shape),
        rows=rows,
        columns=columns,
        kind="einsum",
        equation=f"{lead}...{of_rows},{letters}->{result}",
        stated=True,
    )
    return Layer(kind="einsum", weights=(weight,))


def refused(leaf: str, shape: tuple[int, ...], why: str) -> Layer:
    """Returns a layer with an array that a crossbar cannot multiply by.

    Args:
      leaf: path of the array from the layer.
      shape: its shape.
      why: the reason.
    """
    weight = LayerWeight(
        leaf=leaf,
        shape=tuple(shape),
        rows=(),
        columns=tuple(range(len(shape))),
        kind="einsum",
        stated=True,
    )
    why += (
        ". A crossbar sums over some axes of its array, its rows, and has the others "
        "as columns; axes that inputs and result share lead. Rearrange the array"
    )
    return Layer(kind="einsum", weights=(weight,), refused=((leaf, why),))
