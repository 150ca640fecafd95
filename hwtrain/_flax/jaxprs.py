"""What walks through the jaxpr of a call have in common."""

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
"""Operations that leave every number where it is; a cast as `casts_to` says."""


_NARROWEST = jnp.finfo(jnp.bfloat16).nmant, jnp.finfo(jnp.float16).nexp
"""Bits of fraction and of exponent that a type to compute in has at least."""


def mark(tree: Any, name: str) -> Any:
    """Gives the arrays of a tree a name by which a walk finds them."""
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
    """Returns the type of a cast that does not keep numbers; else an empty string.

    To float16, bfloat16 or a wider type is how layers compute. Integers and `bool` cut
    numbers off, narrower types are converters of a few bits; what an integer of more
    bits holds already is kept.
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
    """Whether a type keeps the numbers of another, but for the rounding of floats."""
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
    # Versions of JAX differ in how they say it: what is scanned has an axis more.
    scanned = sum(_longer(*pair) for pair in zip(equation.invars, inner.invars))
    carries = sum(not _longer(*pair) for pair in zip(equation.outvars, inner.outvars))
    return len(equation.invars) - carries - scanned, carries


def _longer(outer: Any, inner: Any) -> bool:
    """Whether a value of a loop is one of its body with an axis more."""
    return len(outer.aval.shape) > len(inner.aval.shape)
