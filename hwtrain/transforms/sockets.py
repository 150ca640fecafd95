"""Which method of which class multiplies by which array, and over which axes.

A table of classes that hwtrain does not know by itself. A Linen module needs a row only
where it multiplies in a way of its own, for its calls tell what it does; an NNX object
is planned before it is called, and needs one in any case.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from hwtrain import paths
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.einsum import multiplied
from hwtrain.transforms.layer import Layer, joined
from hwtrain.transforms.own_products import watched_product
from hwtrain.transforms.signal_side import analog_dot_general
from hwtrain.transforms.stated import array_letters, of_equation, refused

__all__ = ["register"]

Class = TypeVar("Class", bound=type)
Equation = str | Callable[[Any], str]


class Socket(NamedTuple):
    """A row of the table.

    Attributes:
      array: name of the array.
      equation: of inputs, array and result, or a function of the module that gives it.
      method: name of the method that multiplies.
      dot_general: name of the attribute that it calls as `jax.lax.dot_general`.
      einsum: name of the attribute that it calls as `jnp.einsum`.
      call: the method written again.
    """

    array: str
    equation: Equation
    method: str
    dot_general: str | None
    einsum: str | None
    call: Callable[..., Any] | None

    @property
    def leaf(self) -> str:
        """The array's path from its layer."""
        return paths.join([self.array])

    @property
    def field(self) -> str | None:
        """Name of the attribute in whose place the product of hardware goes."""
        return self.dot_general or self.einsum

    def layer(self, module: Any, shape: tuple[int, ...]) -> Layer:
        """Returns what the plan must know of a module.

        Args:
          module: the module.
          shape: shape of its array, which may be that of a stack.
        """
        given = self.equation
        equation = given if isinstance(given, str) else given(module)
        rank = len(array_letters(equation))
        if self.einsum and getattr(module, self.einsum) not in (None, jnp.einsum):
            why = f"its {self.einsum} is not jnp.einsum, and may do more than multiply"
            return refused(self.leaf, shape[-rank:], why)
        return of_equation(self.leaf, equation, tuple(shape[-rank:]))

    def watched(
        self, before: Any, marked: Callable[[str, Any], Any]
    ) -> Callable[..., Any]:
        """Returns the attribute that multiplies, with the array marked.

        Args:
          before: what the module has there.
          marked: called with the array's path from its layer, and the array.
        """
        if self.dot_general:
            dot_general = before or jax.lax.dot_general
            return watched_product(dot_general, lambda _, w: marked(self.leaf, w))

        def einsum(equation, x, w, **options):
            return jnp.einsum(equation, x, marked(self.leaf, w), **options)

        return einsum

    def analog(
        self,
        before: Any,
        weight: AnalogWeight,
        mode: str,
        leaves: Mapping[str, jax.Array],
    ) -> Callable[..., Any]:
        """Returns the attribute that multiplies as hardware does.

        Args:
          before: what the module has there.
          weight: the plan of the array.
          mode: the mode.
          leaves: what is beside the array in this step, of `STEP_LEAVES`.
        """
        dot_general = before if self.dot_general and before else jax.lax.dot_general
        multiply = analog_dot_general(weight, mode, leaves, dot_general)
        if self.dot_general:
            return multiply

        def einsum(equation, x, w, **options):
            return multiplied(multiply, equation, x, w, **options)

        return einsum


_table: dict[type, list[Socket]] = {}
_forget: list[Callable[[], None]] = []


def register(
    cls: Class,
    array: str,
    equation: Equation,
    *,
    method: str = "__call__",
    dot_general: str | None = None,
    einsum: str | None = None,
    call: Callable[..., Any] | None = None,
) -> Class:
    """Says which array a class multiplies by, and over which axes.

    Models that are analogized from then on have such layers on their hardware. A class
    of your own multiplies by `hwtrain.analog_einsum` or `hwtrain.analog_dot_general`.
    Of NNX, it needs a row, because its objects are planned before they are called:

    >>> import jax, jax.numpy as jnp
    >>> import hwtrain
    >>> class Project(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
    ...     def __call__(self, x):
    ...         return hwtrain.analog_einsum(self, "w", "...i,io->...o", x)
    >>> _ = hwtrain.sockets.register(Project, "w", "...i,io->...o")
    >>> model = hwtrain.analogize(Project(nnx.Rngs(0)), hwtrain.Hardware())
    >>> hwtrain.plan(model)["w"].columns
    (1,)

    A class that you cannot edit may call an attribute that stands for the product; or
    its method is written again as `call`, which multiplies as your own would:

    >>> class Theirs(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         w = self.param("w", nn.initializers.ones, (3, 4))
    ...         return jnp.tanh(x @ w)
    >>> def rewritten(module, x):
    ...     return jnp.tanh(hwtrain.analog_einsum(module, "w", "...i,io->...o", x))
    >>> _ = hwtrain.sockets.register(Theirs, "w", "...i,io->...o", call=rewritten)

    A subclass that does not override the method is what its parent is; one that calls
    `super()`'s has its product. Any other needs a row of its own.

    Args:
      cls: a class of Linen or NNX modules.
      array: name of the parameter (Linen) or of the attribute that is an `nnx.Param`.
      equation: of inputs, array and result, as `jnp.einsum` takes it, also for a
        `dot_general`; or a function of the module that returns it. The letters that
        inputs and result share are stacked crossbars, and lead in the array.
      method: name of the method that multiplies.
      dot_general: name of an attribute that the method calls as `jax.lax.dot_general`,
        with the inputs first, and for this array alone; `None` stands for JAX's own.
      einsum: name of an attribute that it calls so as `jnp.einsum`.
      call: the method written again, a function of the module and the method's
        arguments. Test that it returns what the method does.

    Returns:
      The class.

    Raises:
      ValueError: for what is no class of modules, a method that it does not have, more
        than one way to multiply, or an array or an attribute that has a row already.
    """
    given: Any = cls
    if not isinstance(given, type) or not issubclass(given, nn.Module | nnx.Module):
        raise ValueError(
            "sockets.register takes a class of flax.linen.Module or flax.nnx.Module; "
            f"got {cls!r}"
        )
    if not callable(getattr(cls, method, None)):
        raise ValueError(f"{cls.__name__} has no method {method!r}")
    if sum(way is not None for way in (dot_general, einsum, call)) > 1:
        raise ValueError(
            f"{cls.__name__}.{method} multiplies by {array!r} in one way: give one of "
            "dot_general=, einsum= and call=, or none if it calls hwtrain.analog_einsum"
        )
    if isinstance(equation, str):
        array_letters(equation)
    row = Socket(array, equation, method, dot_general, einsum, call)
    rows = [old for old in _table.get(cls, []) if not _replaces(row, old)]
    for old in rows:
        if old.method != method:
            continue
        if call is not old.call and None not in (call, old.call):
            raise ValueError(
                f"{cls.__name__}.{method} is written again already; one function "
                "multiplies by all of its arrays"
            )
        if row.field is not None and row.field == old.field:
            raise ValueError(
                f"{cls.__name__}.{row.field} multiplies by {old.array!r}; an attribute "
                "is in the place of one product"
            )
    _table[cls] = [*rows, row]
    for forget in _forget:
        forget()
    return cls


def _replaces(new: Socket, old: Socket) -> bool:
    return (new.array, new.method) == (old.array, old.method)


def when_registered(forget: Callable[[], None]) -> None:
    """Has a function called at each registration, such as that of a cache of classes.

    Args:
      forget: the function.
    """
    _forget.append(forget)


def rows_of(cls: type, method: str) -> tuple[Socket, ...]:
    """Returns the rows of a class for a method; none for one that it overrides."""
    for base in cls.__mro__:
        rows = tuple(row for row in _table.get(base, ()) if row.method == method)
        if rows:
            same = getattr(cls, method) is getattr(base, method)
            return rows if same else ()
    return ()


def methods_of(cls: type) -> tuple[str, ...]:
    """Returns the methods that a class, or one of its parents, has rows for."""
    found = (row.method for base in cls.__mro__ for row in _table.get(base, ()))
    return tuple(dict.fromkeys(found))


def overridden(cls: type) -> Layer | None:
    """Returns the layer of a class that overrides a method of a registered one."""
    for method in methods_of(cls):
        if not rows_of(cls, method):
            (base, *_) = (
                base
                for base in cls.__mro__
                if any(row.method == method for row in _table.get(base, ()))
            )
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
        found = joined(found, row.layer(module, shape_of(row.array)))
    return found
