"""Maps an einsum of inputs and a kernel to a multiplication by rows and columns."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._flax.errors import other_geometry
from hwtrain._flax.signal_side import analog_dot_general
from hwtrain._plan.layer import Layer, LayerWeight
from hwtrain._plan.weight import AnalogWeight


def describe(equation: str, shape: tuple[int, ...]) -> Layer:
    """Returns the description of an einsum layer for the plan.

    The kernel's axes that the equation sums over are rows, and axes that the inputs
    lack are columns. Axes that inputs, kernel and output share form a stack of
    crossbars, and must come first.

    >>> describe("bte,ehd->bthd", (16, 4, 8)).weights[0].columns
    (1, 2)
    >>> describe("bte,hed->bthd", (4, 16, 8)).weights[0].rows
    (1,)
    >>> describe("ab,b->ab", (3,)).why
    "its equation 'ab,b->ab' sums over no axis"

    Args:
      equation: such as `"bte,ehd->bthd"`: inputs, kernel, output.
      shape: shape of the kernel.
    """
    equation = equation.replace(" ", "")
    inputs, kernel, output = _operands(equation)
    of = f"its equation {equation!r}"
    if "." in kernel:
        return Layer(why=f"{of} has an ellipsis in the kernel")
    if any(x.count(c) > 1 for x in (inputs, kernel) for c in x if c != "."):
        return Layer(why=f"{of} repeats an index in one operand")
    alone = [c for c in kernel if c not in inputs and c not in output]
    if alone:
        return Layer(why=f"{of} sums the kernel alone over {alone[0]!r}")
    stack = [i for i, c in enumerate(kernel) if c in inputs and c in output]
    if stack != list(range(len(stack))):
        names = ", ".join(repr(kernel[i]) for i in stack)
        return Layer(
            why=f"{of} stacks crossbars over {names}, which must lead in the kernel"
        )
    rows = tuple(i for i, c in enumerate(kernel) if c not in output)
    if not rows:
        return Layer(why=f"{of} sums over no axis")
    columns = tuple(i for i, c in enumerate(kernel) if c not in inputs)
    weight = LayerWeight(
        shape=tuple(shape),
        rows=rows,
        columns=columns,
        equation=equation,
    )
    return Layer(kind="einsum", weights=(weight,))


def analog_einsum(
    weight: AnalogWeight, mode: str, leaves: Mapping[str, jax.Array]
) -> Callable[..., jax.Array]:
    """Returns a stand-in for `jnp.einsum` of the layer's inputs and kernel.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: the leaves beside the kernel in this step, as in `names_beside`.
    """
    multiply = analog_dot_general(weight, mode, leaves, jax.lax.dot_general)

    def einsum(equation: str, x: jax.Array, kernel: jax.Array, **options: Any):
        if equation.replace(" ", "") != weight.equation:
            planned = f"computes {weight.equation!r}"
            raise other_geometry(weight, planned, repr(equation))
        return multiplied(multiply, equation, x, kernel, **options)

    return einsum


def multiplied(
    multiply: Callable[..., jax.Array],
    equation: str,
    x: jax.Array,
    kernel: jax.Array,
    **options: Any,
) -> jax.Array:
    """Returns the einsum of inputs and a kernel by one product of the two.

    Args:
      multiply: called like `jax.lax.dot_general`.
      equation: an equation that `describe` accepts.
      x: the inputs.
      kernel: the kernel.
      **options: passed to `multiply`.
    """
    inputs, names, output = _without_ellipsis(equation, x.ndim)
    alone = [i for i, c in enumerate(inputs) if c not in names and c not in output]
    x = jnp.sum(x, axis=tuple(alone))  # digital: these axes meet no weight
    inputs = "".join(c for i, c in enumerate(inputs) if i not in alone)
    stack = [c for c in names if c in inputs and c in output]
    summed = [c for c in names if c not in output]
    y = multiply(
        x,
        kernel,
        (
            (_axes(inputs, summed), _axes(names, summed)),
            (_axes(inputs, stack), _axes(names, stack)),
        ),
        **options,
    )
    free = [c for c in inputs if c not in names]
    found = [*stack, *free, *(c for c in names if c not in inputs)]
    return jnp.transpose(y, [found.index(c) for c in output])


def _operands(equation: str) -> tuple[str, str, str]:
    operands, _, output = equation.partition("->")
    inputs, _, kernel = operands.partition(",")
    return inputs, kernel, output


def _without_ellipsis(equation: str, rank: int) -> tuple[str, str, str]:
    """Returns inputs, kernel and output, with letters in place of the inputs' ellipsis.

    Args:
      equation: the equation.
      rank: rank of the inputs.
    """
    inputs, kernel, output = _operands(equation.replace(" ", ""))
    unused = [chr(i) for i in range(ord("A"), ord("z")) if chr(i).isalpha()]
    unused = [c for c in unused if c not in equation]
    letters = "".join(unused[: rank - len(inputs.replace(".", ""))])
    return inputs.replace("...", letters), kernel, output.replace("...", letters)


def _axes(names: Any, wanted: list[str]) -> tuple[int, ...]:
    return tuple(names.index(c) for c in wanted)
