"""What walks through the jaxpr of a call have in common."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

TRANSPARENT = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "sharding_constraint",
    "stop_gradient",
}
"""Operations that leave every number where it is."""


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
