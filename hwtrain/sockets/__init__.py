"""Registers which array each method of a class multiplies by, and over which axes.

There is one table per framework; the layers of Flax have rows in it too. A Linen module
of your own needs a row only if it multiplies in a way of its own, since its calls show
the rest. An NNX module always needs one, because it is planned before it is called.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn
from flax import nnx

from hwtrain._errors import InputError
from hwtrain.sockets import _table

__all__ = ["register"]

Class = TypeVar("Class", bound=type)


def register(
    cls: Class,
    array: str,
    equation: str | Callable[..., str],
    *,
    method: str = "__call__",
    dot_general: str | None = None,
    einsum: str | None = None,
    call: Callable[..., Any] | None = None,
) -> Class:
    """Registers the array that a class multiplies by, and the axes of the product.

    Models that are analogized afterwards put such layers on their hardware. A class of
    your own multiplies by `hwtrain.analog_einsum` or `hwtrain.analog_dot_general`. An
    NNX class needs a row as well, because its objects are planned before they are
    called:

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

    For a class that you cannot edit, name an attribute that it calls for the product,
    or pass as `call` a rewritten method that multiplies as your own would:

    >>> class Theirs(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         w = self.param("w", nn.initializers.ones, (3, 4))
    ...         return jnp.tanh(x @ w)
    >>> def rewritten(module, x):
    ...     return jnp.tanh(hwtrain.analog_einsum(module, "w", "...i,io->...o", x))
    >>> _ = hwtrain.sockets.register(Theirs, "w", "...i,io->...o", call=rewritten)

    A subclass that does not override the method is treated as its parent; one that
    calls `super()`'s method has its product. Any other subclass needs its own row.

    Args:
      cls: a class of Linen or NNX modules.
      array: name of the parameter (Linen) or of the attribute that is an `nnx.Param`.
      equation: equation of inputs, array and result, in the notation of `jnp.einsum`,
        also for a `dot_general`; or a function that returns it, of the module or, in
        Linen, of the module and the method's arguments. Letters shared by inputs and
        result are stacked crossbars, and must lead in the array.
      method: name of the method that multiplies.
      dot_general: name of an attribute that the method calls like
        `jax.lax.dot_general`, with the inputs first, and for this array only; `None` in
        the attribute stands for JAX's own.
      einsum: name of an attribute that the method calls likewise as `jnp.einsum`.
      call: the rewritten method, a function of the module and the method's arguments.
        The original creates the parameters; in Linen, read others by
        `module.get_variable("params", name)`. Test that it returns the same values as
        the method.

    Returns:
      The class.

    Raises:
      ValueError: if `cls` is not a class of modules or has no such method, if more
        than one way to multiply is given, or if one attribute would stand for two
        products.
    """
    given: Any = cls
    if not isinstance(given, type) or not issubclass(given, nn.Module | nnx.Module):
        raise InputError(
            "sockets.register takes a class of flax.linen.Module or flax.nnx.Module; "
            f"got {cls!r}"
        )
    if not callable(getattr(cls, method, None)):
        raise InputError(f"{cls.__name__} has no method {method!r}")
    if sum(way is not None for way in (dot_general, einsum, call)) > 1:
        raise InputError(
            f"{cls.__name__}.{method} multiplies by {array!r} in one way: give one of "
            "dot_general=, einsum= and call=, or none if it calls hwtrain.analog_einsum"
        )
    if isinstance(equation, str):
        _table.array_letters(equation)
    row = _table.Socket(
        array, equation, method, dot_general=dot_general, einsum=einsum, call=call
    )
    _table.add(cls, row)
    return cls
