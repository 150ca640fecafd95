"""Stores the results of a module's call as its digital unit does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError
from hwtrain._flax.observation import result_observer
from hwtrain._plan.outputs import StoredOutput


def stored(output: StoredOutput, results: Any, arguments: Any) -> Any:
    """Returns the results of a call as they are stored.

    Args:
      output: the module's entry in the plan.
      results: a tree, of which all real floating-point arrays are stored; integers,
        booleans, keys and other objects stay as they are.
      arguments: a tree of the arguments of the call.

    Raises:
      ValueError: if there is none, for complex arrays, if a format changes a shape or
        dtype, or if the only axis of a result may be that of examples while each vector
        has its own full scale.
    """
    where, count = output.path or "the model", 0
    most_axes = max(
        (np.ndim(x) for x in jax.tree.leaves(arguments) if _is_array(x)), default=0
    )

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
        if output.format.per_vector and y.ndim == 1 < most_axes:
            raise InputError(
                f"{where} ({output.layer}) returns {dtype}{[*y.shape]} for arguments "
                f"of up to {most_axes} axes, so its only axis may be that of examples, "
                f"and {output.rule} would store them with one full scale for all. "
                "State it: DigitalFormat(full_scale=...)"
            )
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


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)
