"""Stores the results of a module's call as its digital unit does."""

from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._errors import InputError
from hwtrain._flax.observation import result_observer
from hwtrain._plan.outputs import StoredOutput


def stored(output: StoredOutput, results: Any) -> Any:
    """Returns the results of a call as they are stored.

    Args:
      output: the module's entry in the plan.
      results: a tree, of which all real floating-point arrays are stored; integers,
        booleans, keys and other objects stay as they are.

    Raises:
      ValueError: if there is none, for complex arrays, or if a format changes a shape
        or dtype.
    """
    where, count = output.path or "the model", 0

    def store(y: Any) -> Any:
        nonlocal count
        dtype = getattr(y, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            return y
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise InputError(
                f"{where} ({output.layer}) returns {dtype}, and {output.rule} stores "
                "its results as real numbers. Return real and imaginary parts, or "
                f"leave it out: Rule({output.path!r}, None) before the others"
            )
        count += 1
        y = jnp.asarray(y)
        found = output.format.store(y)
        if (found.shape, found.dtype) != (y.shape, y.dtype):
            raise InputError(
                f"{where}: {type(output.format).__name__}.store returns {found.dtype}"
                f"{[*found.shape]} for results {y.dtype}{[*y.shape]}; it must keep "
                "shape and dtype"
            )
        watch = result_observer()
        if watch is not None:
            watch(output, y, found)
        return found

    found = jax.tree.map(store, results)
    if not count:
        raise InputError(
            f"{where} ({output.layer}) returns no floating-point arrays, so "
            f"outputs={output.format.describe()!r} ({output.rule}) would do nothing. "
            f"Write Rule({output.path!r}, None) before the others"
        )
    return found
