"""Mismatch prototypes: boolean trees that select the deviating parameters."""

import collections
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan
from hwtrain._plan.quantities import QUANTITIES, quantity_of

Compat = Literal["rockpool"] | None


# Four currents that identify a DynapSim.
_SIGNATURE = {"Itau_mem", "Igain_mem", "Itau_syn", "Ispkthr"}


# Rockpool also deviates this current, although its equations do not use it.
_FROZEN = {*QUANTITIES, "If_nmda"}
_KERNELS = ("kernel", "weight")


def tree_of(tree_or_model: Any) -> paths.Tree:
    """Returns the parameters of an NNX model; a tree is returned unchanged.

    Raises:
      ValueError: for a Linen model, or if two leaves have the same path.
    """
    if isinstance(tree_or_model, nnx.Module):
        return nnx.state(tree_or_model, nnx.Param)
    if isinstance(tree_or_model, nn.Module):
        raise InputError(
            f"{type(tree_or_model).__name__} is a Linen model, which holds no "
            "parameters: pass variables = model.init(key, x), and for an analog model "
            "plan=hwtrain.plan(analog, variables, x) too"
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree_or_model)
    names = collections.Counter(paths.path_of(keys) for keys, _ in leaves)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InputError(f"two leaves of the tree have the path {twice}; rename one")
    return tree_or_model


def select(tree_or_model: Any, *patterns: str) -> paths.Tree:
    """Returns the prototype that selects leaves whose path matches a pattern.

    Integers and functions are never selected. Prototypes are trees of booleans: the
    union of two is `jax.tree.map(operator.or_, first, second)`.

    >>> select({"hidden": {"kernel": 1.0, "bias": 0.0}}, ".*kernel")
    {'hidden': {'bias': False, 'kernel': True}}

    Args:
      tree_or_model: parameters, variables, or an NNX model.
      *patterns: regular expressions; each must match a whole path (`re.fullmatch`).

    Returns:
      A tree of the same structure with boolean leaves.

    Raises:
      ValueError: for a pattern that matches no floating-point leaf.
    """
    tree = tree_of(tree_or_model)
    floats = [path for path, leaf in paths.leaves(tree).items() if is_float(leaf)]
    chosen: set[str] = set()
    for pattern in patterns:
        matching = [path for path in floats if re.fullmatch(pattern, path)]
        if not matching:
            raise InputError(
                f"select: the pattern {pattern!r} matches no floating-point leaf; a "
                f"pattern must match the whole path. The tree has {sorted(floats)}"
            )
        chosen.update(matching)
    return _prototype(tree, chosen, "select needs a pattern, such as '.*kernel'")


def frozen_mismatch_prototype(
    tree_or_model: Any, *, plan: Plan | None = None, compat: Compat = None
) -> paths.Tree:
    """Returns the prototype that selects everything that differs between chips.

    These are the currents, capacitances and constants of every DynapSim, and the
    kernels of layers.

    >>> frozen_mismatch_prototype({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}

    Args:
      tree_or_model: parameters, variables, or an NNX model. A DynapSim is recognised by
        the names of its leaves, in amperes or as logarithms.
      plan: the plan of an analog model, whose analog weights are the kernels. An analog
        NNX model has its own plan. Without a plan, kernels are the leaves of two axes
        or more called `kernel` or `weight`.
      compat: `"rockpool"` selects what Rockpool does: no kernels.

    Raises:
      ValueError: if nothing is selected.
    """
    tree = tree_of(tree_or_model)
    chosen = {
        path
        for path, neuron in _in_dynapsim(tree).items()
        if (quantity_of(neuron) or neuron) in _FROZEN
    }
    if _check_compat(compat) is None:
        chosen |= _kernels(tree, _plan_of(tree_or_model, plan))
    return _prototype(tree, chosen, "the tree holds neither a DynapSim nor kernels")


def dynamic_mismatch_prototype(
    tree_or_model: Any, *, plan: Plan | None = None, compat: Compat = None
) -> paths.Tree:
    """Returns the prototype of trained weights: kernels, and each DynapSim's `w_rec`.

    >>> dynamic_mismatch_prototype({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}

    Args:
      tree_or_model: parameters, variables, or an NNX model.
      plan: as for `frozen_mismatch_prototype`.
      compat: `"rockpool"` selects what Rockpool does: of the layers, only those that
        have nothing but a weight and a bias.

    Raises:
      ValueError: if nothing is selected.
    """
    tree = tree_of(tree_or_model)
    chosen = {path for path, name in _in_dynapsim(tree).items() if name == "w_rec"}
    kernels = _kernels(tree, _plan_of(tree_or_model, plan))
    if _check_compat(compat) == "rockpool":
        siblings = _by_parent(tree)
        kernels = {
            path
            for path in kernels
            if siblings[path.rpartition("/")[0]] <= {*_KERNELS, "bias"}
        }
    what = "the tree holds neither kernels nor a DynapSim with recurrent weights"
    return _prototype(tree, chosen | kernels, what)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating-point number or an array of them."""
    if isinstance(leaf, float):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _check_compat(compat: Any) -> Any:
    if compat not in (None, "rockpool"):
        raise InputError(f'compat must be None or "rockpool"; got {compat!r}')
    return compat


def _by_parent(tree: paths.Tree) -> dict[str, set[str]]:
    parents: dict[str, set[str]] = {}
    for path in paths.leaves(tree):
        parent, _, name = path.rpartition("/")
        parents.setdefault(parent, set()).add(name)
    return parents


def _in_dynapsim(tree: paths.Tree) -> dict[str, str]:
    """Returns the leaves of every DynapSim: their names by path."""
    names = {}
    for parent, leaves in _by_parent(tree).items():
        if {quantity_of(name) or name for name in leaves} >= _SIGNATURE:
            start = f"{parent}/" if parent else ""
            names |= {f"{start}{name}": name for name in leaves}
    return names


def _plan_of(tree_or_model: Any, plan: Plan | None) -> Plan | None:
    """Returns the given plan, or else the plan of an analog NNX model."""
    return getattr(tree_or_model, "analog_plan", None) if plan is None else plan


def _kernels(tree: paths.Tree, plan: Plan | None) -> set[str]:
    leaves = paths.leaves(tree)
    if plan is None:
        return {
            path
            for path, leaf in leaves.items()
            if path.rpartition("/")[2] in _KERNELS and np.ndim(leaf) >= 2
        }
    local = [path.removeprefix(f"{plan.prefix}/") for path in plan]
    start = "" if set(local) <= set(leaves) else "params/"
    missing = [path for path in local if f"{start}{path}" not in leaves]
    if missing:
        raise InputError(
            f"the plan has {missing}, the tree does not; it has {sorted(leaves)}"
        )
    return {f"{start}{path}" for path in local}


def _prototype(tree: paths.Tree, chosen: set[str], why_empty: str) -> paths.Tree:
    if not chosen:
        raise InputError(
            f"the prototype would select nothing: {why_empty}. The tree has "
            f"{sorted(paths.leaves(tree))}; name leaves with hwtrain.select"
        )
    return paths.map_leaves(lambda path, leaf: path in chosen, tree)
