"""Numbers of a configuration whose values are traced.

A configuration statically defines a program. To trace one of its numbers, a `Constant`
takes its place. In arithmetic it is the traced value; in a condition such as
`if self.sigma > 0` it is the number of the static configuration, which is on wherever a
constant is allowed. Without a value it is a hole. Holes are hashable, so that they can
be part of the key of a compiled program; the value is then an argument of the program
that fills the hole.
"""

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError
from hwtrain._parts.leaf import LeafSpec

T = TypeVar("T")

CONSTANTS = LeafSpec(
    name="hardware_constants",
    when=("step",),
    # Independent of the hardware: any hardware can have constants.
    there=lambda weight, when: weight.kind != "raw",
    shapes=lambda weight: ((),),
    trained=None,
)
"""The traced constants of the hardware of an array in a call, concatenated."""


@jax.tree_util.register_pytree_node_class
class Constant:
    """A number of a configuration with a traced value, or a hole for one.

    >>> noise = Constant("forward.out_noise", 0.5, value=jnp.float32(2.0))
    >>> print(noise * jnp.ones(2), noise > 1)
    [2. 2.] False
    """

    __array_ufunc__ = None  # makes NumPy arrays defer arithmetic to this class
    dtype, shape, ndim = jnp.dtype("float32"), (), 0

    def __init__(self, name: str, number: float, place: int = 0, value: Any = None):
        """Initialises a constant.

        Args:
          name: path of the number, such as `"forward.out_noise"`.
          number: the number in the static configuration.
          place: index among the values that fill holes.
          value: the traced value, `[]` float32; `None` for a hole.
        """
        self.name, self.number, self.place, self.value = name, number, place, value

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        """Returns the value as a child, and the static data."""
        return (self.value,), (self.name, self.number, self.place)

    @classmethod
    def tree_unflatten(cls, static: Any, values: Any) -> "Constant":
        """Inverse of `tree_flatten`."""
        return cls(*static, *values)

    def __jax_array__(self) -> Any:
        """Returns the traced value."""
        if self.value is None:
            raise InputError(
                f"{self.name} is traced (hwtrain.with_constants), so its value is "
                "known only inside a call of the model: call it through its root"
            )
        return self.value

    def _apply(self, operation: Callable[..., Any], *operands: Any) -> Any:
        if not all(map(_scalar, operands)):
            return operation(*(_array(x) for x in operands))
        known = None if any(map(_hole, operands)) else operation(*map(_array, operands))
        number = operation(*map(static, operands))
        return Constant(self.name, number, self.place, known)

    def _compare(self, operation: Callable[..., Any], other: Any) -> Any:
        if isinstance(other, jax.Array | np.ndarray):
            return operation(_array(self), other)
        return operation(self.number, static(other))

    def __eq__(self, other: object) -> Any:
        """Compares with arrays by value; never equals a number, such as 0."""
        if isinstance(other, jax.Array | np.ndarray):
            return operator.eq(_array(self), other)
        return isinstance(other, Constant) and _identity(self) == _identity(other)

    def __ne__(self, other: object) -> Any:
        """Negates `__eq__`."""
        if isinstance(other, jax.Array | np.ndarray):
            return operator.ne(_array(self), other)
        return not self == other

    def __hash__(self) -> int:
        """Returns the hash of a hole."""
        if self.value is not None:
            raise TypeError(
                f"{self.name} is traced (hwtrain.with_constants), so its configuration "
                "has no hash and cannot key a compiled program. Use the plan or the "
                "model without constants here"
            )
        return hash(_identity(self))

    def __bool__(self) -> bool:
        """Whether the static number is not zero."""
        return bool(self.number)

    def __repr__(self) -> str:
        """Returns a description of the constant."""
        return f"<traced {self.name}, {self.number!r} in the configuration>"

    def __format__(self, form: str) -> str:
        """Returns the static number as text."""
        return format(self.number, form)

    def _no_number(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"{self.name} is traced (hwtrain.with_constants) and is not a Python "
            "number: write jnp.sqrt for math.sqrt or np.sqrt, and no float(), int() or "
            "round()"
        )

    __float__ = __int__ = __index__ = __round__ = __array__ = _no_number


def _identity(x: Constant) -> tuple[Any, ...]:
    return x.name, x.number, x.place, id(x.value)


def _scalar(x: Any) -> bool:
    return isinstance(x, Constant | float | int | np.generic)


def _hole(x: Any) -> bool:
    return isinstance(x, Constant) and x.value is None


def _array(x: Any) -> Any:
    return x.__jax_array__() if isinstance(x, Constant) else x


def _operator(name: str) -> None:
    operation = getattr(operator, name)

    def forward(self: Constant, other: Any) -> Any:
        return self._apply(operation, self, other)

    def reflected(self: Constant, other: Any) -> Any:
        return self._apply(operation, other, self)

    setattr(Constant, f"__{name}__", forward)
    setattr(Constant, f"__r{name}__", reflected)


def _unary(name: str) -> None:
    operation = getattr(operator, name)
    setattr(Constant, f"__{name}__", lambda self: self._apply(operation, self))


def _comparison(name: str) -> None:
    operation = getattr(operator, name)
    setattr(
        Constant, f"__{name}__", lambda self, other: self._compare(operation, other)
    )


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _operator(_name)
for _name in ("neg", "pos", "abs"):
    _unary(_name)
for _name in ("lt", "le", "gt", "ge"):
    _comparison(_name)


def static(x: Any) -> Any:
    """Replaces the constants of a configuration by their static numbers.

    >>> static((Constant("a", 0.5, value=jnp.float32(2.0)), "text"))
    (0.5, 'text')
    """
    return mapped(lambda constant: constant.number, x)


def mapped(function: Callable[[Constant], Any], tree: T) -> T:
    """Returns a configuration with its constants replaced.

    The result is not validated. Without constants, `tree` itself is returned.

    Args:
      function: returns the replacement of a constant.
      tree: a configuration, a tuple, a number or anything else.
    """
    if isinstance(tree, Constant):
        return function(tree)
    if type(tree) is tuple:
        new = tuple(mapped(function, x) for x in tree)
        same = all(a is b for a, b in zip(new, tree))
        return tree if same else new  # type: ignore[return-value]
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        return tree
    fields = {x.name: getattr(tree, x.name) for x in dataclasses.fields(tree)}
    new = {name: mapped(function, value) for name, value in fields.items()}
    if all(new[name] is value for name, value in fields.items()):
        return tree
    return _filled_in(copy.copy(tree), new)


def found_in(tree: Any) -> list[Constant]:
    """Returns the constants of a configuration."""
    found: list[Constant] = []

    def note(constant: Constant) -> Constant:
        found.append(constant)
        return constant

    mapped(note, tree)
    return found


def has_traced(tree: Any) -> bool:
    """Whether a configuration holds a constant with a value."""
    return any(constant.value is not None for constant in found_in(tree))


def split(tree: T) -> tuple[T, tuple[Any, ...]]:
    """Returns a configuration with holes in place of its constants, and their values.

    The values become arguments of a program, or of a differentiation rule.
    """
    values: list[Any] = []

    def hole(constant: Constant) -> Constant:
        values.append(_array(constant))
        return Constant(constant.name, constant.number, len(values) - 1)

    return mapped(hole, tree), tuple(values)


def filled(tree: T, values: Sequence[Any] | jax.Array) -> T:
    """Returns a configuration with its holes filled: the inverse of `split`.

    >>> hole = Constant("a", 0.5)
    >>> print(filled((hole,), (jnp.float32(2.0),))[0] * jnp.ones(1))
    [2.]

    Args:
      tree: a configuration with holes.
      values: the values in order, a sequence or `[places]`.
    """

    def fill(x: Constant) -> Constant:
        return Constant(x.name, x.number, x.place, values[x.place])

    return mapped(fill, tree)


def stopped(tree: T) -> T:
    """Returns a configuration whose constants get no gradient."""

    def stop(x: Constant) -> Constant:
        value = jax.lax.stop_gradient(_array(x))
        return Constant(x.name, x.number, x.place, value)

    return mapped(stop, tree)


def replaced(configuration: T, **changes: Any) -> T:
    """As `dataclasses.replace`, but without validation if there are constants."""
    if not found_in(configuration) and not found_in(tuple(changes.values())):
        return dataclasses.replace(configuration, **changes)  # type: ignore[type-var]
    return _filled_in(copy.copy(configuration), changes)


def accepting(cls: type[T]) -> type[T]:
    """Makes a configuration class accept constants in place of numbers, unvalidated.

    Args:
      cls: a pydantic dataclass.
    """
    check: Any = cls.__init__

    @functools.wraps(check)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        if not found_in(tuple(fields.values())):
            return check(self, *args, **fields)
        known: Any = cls
        for name, field in known.__pydantic_fields__.items():
            if name not in fields:
                fields[name] = field.get_default(call_default_factory=True)
        _filled_in(self, fields)

    cls.__init__ = __init__
    return cls


def _filled_in(configuration: T, fields: Mapping[str, Any]) -> T:
    for name, value in fields.items():
        object.__setattr__(configuration, name, value)
    return configuration


def stacked(values: Sequence[Any]) -> jax.Array:
    """Returns the values of holes as one array, `[places]` float32."""
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])


def with_straight_through(
    configuration: Any, change: Callable[..., jax.Array], w: jax.Array, *beside: Any
) -> jax.Array | None:
    r"""Returns changed weights, with gradients to weights and to traced constants.

    .. math:: w' = f(w, c), \qquad
        \bar w = \bar w', \quad \bar c = \bar w' \, \partial f / \partial c

    Args:
      configuration: the configuration that may hold constants.
      change: f, a function of the weights and of `beside`.
      w: the weights.
      *beside: further arrays, which get no gradient.

    Returns:
      The changed weights; `None` if no constant is traced.
    """
    if not has_traced(configuration):
        return None
    new = change(*jax.lax.stop_gradient((w, *beside)))
    return jnp.asarray(new, w.dtype) + (w - jax.lax.stop_gradient(w))
