"""How a model is called: by which function, with which arguments."""

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hwtrain._errors import InputError

Forward = Callable[[Callable[..., Any], Any], Any]
"""`(apply, inputs) -> outputs`: calls a model, as `apply`, for inputs of any kind."""


class _FirstCallError(Exception):
    """Ends a forward function at its first call of the model."""


def first_call(forward: Forward, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments with which a forward function calls the model first.

    >>> first_call(lambda apply, batch: apply(batch["x"], train=False), {"x": 3})
    ((3,), {'train': False})

    Args:
      forward: the function; it is run up to that call.
      inputs: its inputs.

    Raises:
      ValueError: if it does not call the model.
    """
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def apply(*args: Any, **kwargs: Any) -> Any:
        given.append((args, kwargs))
        raise _FirstCallError

    with contextlib.suppress(_FirstCallError):
        forward(apply, inputs)
    if not given:
        name = getattr(forward, "__name__", type(forward).__name__)
        raise InputError(
            f"{name}: expected a function (apply, inputs) that calls its first "
            "argument, the model, got one that does not"
        )
    return given[0]


def require_one_call(
    forward: Forward | None, kwargs: Mapping[str, Any] | None, caller: str
) -> None:
    """Raises a `ValueError` if keyword arguments are given beside a forward function.

    Args:
      forward: the forward function.
      kwargs: keyword arguments of the model's call.
      caller: the function that was given both.
    """
    if forward is not None and kwargs:
        raise InputError(
            f"{caller} got a forward function and {', '.join(kwargs)} too; pass "
            "keyword arguments of the model where the function calls it"
        )


def through(function: Callable[..., Any], forward: Forward) -> Callable[..., Any]:
    """Returns a function of `as_function` that calls the model by a forward function.

    Args:
      function: called as `function(variables, key, *args, **kwargs)`.
      forward: the function. Each call of the model in it draws anew.

    Returns:
      A function called as `called(variables, key, inputs)`.
    """

    def called(variables: Any, key: jax.Array, inputs: Any) -> Any:
        numbers = itertools.count()

        def apply(*args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            read = jax.random.fold_in(key, number) if number else key
            return function(variables, read, *args, **kwargs)

        return forward(apply, inputs)

    return called


def divided(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a call's keyword arguments into arrays for a program and static ones.

    >>> divided({"train": False, "mask": np.ones(3), "rngs": {}})
    ({'mask': array([1., 1., 1.])}, {'train': False, 'rngs': {}})

    Args:
      kwargs: the keyword arguments.

    Returns:
      The arguments made of arrays, such as masks and keys; and all others, such as
      flags.
    """
    arrays, static = {}, {}
    for name, value in kwargs.items():
        leaves = jax.tree.leaves(value)
        traced = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        (arrays if leaves and traced else static)[name] = value
    if isinstance(static.get("mutable"), list):
        static["mutable"] = tuple(static["mutable"])  # hashable
    return arrays, static
