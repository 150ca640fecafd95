"""Custom derivatives that work on any mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def vary_alike(*operands: Any) -> Any:
    """Casts operands to vary over the same manual mesh axes, the union of theirs.

    >>> vary_alike(1.0, 2.0)
    (1.0, 2.0)

    Args:
      *operands: arrays, or trees of them.
    """
    leaves, structure = jax.tree.flatten(operands)
    axes = frozenset().union(*map(_axes, leaves))

    def cast(leaf: Any) -> Any:
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.unflatten(structure, map(cast, leaves))


def _axes(leaf: Any) -> frozenset[Any]:
    return frozenset(jax.typeof(leaf).manual_axis_type.varying)


class _CustomVjp:
    """A function with a custom derivative, for operands that vary over the same axes.

    Its arguments are passed by position.
    """

    def __init__(self, function: Callable[..., Any], nondiff_argnums: Sequence[int]):
        self._inner = jax.custom_vjp(function, nondiff_argnums=tuple(nondiff_argnums))
        self._static = frozenset(nondiff_argnums)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        values = list(args)
        arrays = [n for n in range(len(values)) if n not in self._static]
        for n, value in zip(arrays, vary_alike(*(values[n] for n in arrays))):
            values[n] = value
        return self._inner(*values)

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Sets the rules, as in `jax.custom_vjp`."""
        count = len(self._static)

        def alike(*args: Any) -> Any:
            # A rule may return a gradient made of constants only, such as zero.
            return vary_alike(backward(*args), args[count:])[0]

        self._inner.defvjp(forward, alike)


def custom_vjp(*, nondiff_argnums: Sequence[int] = ()) -> Callable[..., _CustomVjp]:
    """Returns a decorator like `jax.custom_vjp`.

    Args:
      nondiff_argnums: as in `jax.custom_vjp`.
    """
    return functools.partial(_CustomVjp, nondiff_argnums=nondiff_argnums)


def straight_through(w: jax.Array, value: jax.Array) -> jax.Array:
    """Returns `value`, and passes its gradient to `w`.

    >>> from jax.numpy import round
    >>> f = lambda w: 3 * straight_through(w, round(w))
    >>> print(f(0.7), jax.grad(f)(0.7))
    3.0 3.0

    Args:
      w: receives the gradient.
      value: the result, of the dtype of `w`, which is broadcast to its shape.
    """
    w = jax.numpy.broadcast_to(w, jax.numpy.shape(value))  # tiles may draw their own
    return _straight_through(*vary_alike(w, value))


@jax.custom_jvp
def _straight_through(w, value):
    # JAX mismaps a result that is not mapped where its tangent, that of `w`, is: this
    # selection always returns `value`, but is mapped like both. XLA removes it.
    return jax.lax.select_n(np.False_, value, w)


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return _straight_through(*primals), tangents[0]


def modified(w: jax.Array, value: jax.Array, *, reparameterized: bool) -> jax.Array:
    """Returns modified weights with the dtype and gradient of the nominal ones.

    Args:
      w: nominal weights.
      value: the modified weights, of the same shape.
      reparameterized: keep the true derivative of `value`, at fixed random numbers,
        instead of passing the gradient straight through.
    """
    value = value.astype(w.dtype)
    if reparameterized:
        return value
    return straight_through(w, jax.lax.stop_gradient(value))
