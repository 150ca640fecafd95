"""Which method of which class multiplies by which array, and over which axes.

One table for each framework, in which the layers of Flax have rows too. A Linen module
of your own needs one only where it multiplies in a way of its own, for its calls tell
what it does; an NNX object is planned before it is called, and needs one in any case.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn
from flax import nnx

from hwtrain.sockets import _table as table

__all__ = ["register"]

Class = TypeVar("Class", bound=type)


def register(
    cls: Class,
    array: str,
    equation: str | Callable[[Any], str],
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
        arguments. The original makes the parameters; of Linen, it reads others by
        `module.get_variable("params", name)`. Test that it returns what the method
        does.

    Returns:
      The class.

    Raises:
      ValueError: for what is no class of modules, a method that it does not have, more
        than one way to multiply, or an attribute in the place of two products.
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
        table.array_letters(equation)
    row = table.Socket(
        array, equation, method, dot_general=dot_general, einsum=einsum, call=call
    )
    table.add(cls, row)
    return cls
