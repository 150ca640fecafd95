"""Shared helpers for walks through the jaxpr of a call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

TRANSPARENT = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
}
"""Operations that keep the place of every number; for casts see `casts_to`."""

_NARROWEST = jnp.finfo(jnp.bfloat16).nmant, jnp.finfo(jnp.float16).nexp
"""Minimum bits of fraction and exponent of a dtype for computing."""


def mark(tree: Any, name: str) -> Any:
    """Gives the arrays in a tree a name by which a walk finds them."""
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [
        checkpoint_name(leaf, name)
        if isinstance(leaf, jax.Array)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(treedef, leaves)


def casts_to(equation: Any) -> str:
    """Returns the dtype of a cast that changes numbers; else an empty string.

    Layers compute in float16, bfloat16 or wider dtypes. Casts to integers and `bool`
    truncate, and narrower dtypes are converters of a few bits; a cast of an integer to
    one with more bits keeps it.
    """
    name, params = equation.primitive.name, equation.params
    if name == "reduce_precision":
        bits = params["mantissa_bits"], params["exponent_bits"]
        kept = all(have >= least for have, least in zip(bits, _NARROWEST))
        return "" if kept else f"{bits[1]} bits of exponent and {bits[0]} of fraction"
    if name != "convert_element_type":
        return ""
    old, new = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if jnp.issubdtype(old, jax.dtypes.extended) or _holds(old, new):
        return ""
    return new.name


def _holds(old: Any, new: Any) -> bool:
    """Whether a dtype keeps the numbers of another, except for rounding of floats."""
    if old == new:
        return True
    if jnp.issubdtype(old, jnp.complexfloating):
        return jnp.issubdtype(new, jnp.complexfloating)
    if jnp.issubdtype(new, jnp.inexact):
        info = jnp.finfo(new)
        return info.nmant >= _NARROWEST[0] and info.nexp >= _NARROWEST[1]
    if jnp.issubdtype(old, jnp.inexact):
        return False
    return np.can_cast(old, new)


def inner_jaxpr(params: Any) -> Any:
    """Returns the jaxpr of a function that an equation calls, or `None`."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return getattr(params[key], "jaxpr", params[key])
    return None


def scan_parts(equation: Any, inner: Any) -> tuple[int, int]:
    """Returns how many operands of a scan are constants, and how many are carried."""
    # JAX versions store this differently, but a scanned value always has an extra axis.
    scanned = sum(_longer(*pair) for pair in zip(equation.invars, inner.invars))
    carries = sum(not _longer(*pair) for pair in zip(equation.outvars, inner.outvars))
    return len(equation.invars) - carries - scanned, carries


def _longer(outer: Any, inner: Any) -> bool:
    """Whether a loop's value has one more axis than in the body."""
    return len(outer.aval.shape) > len(inner.aval.shape)
