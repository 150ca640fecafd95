"""Turns analog parameters into plain ones."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.nnx.layers import OUR_TYPES, PartLeaf
from hwtrain._flax.weight_side import local
from hwtrain._plan.leaf_names import BUILT_IN, is_effective, may_be_leaf, split
from hwtrain._plan.plan import ONE, Plan
from hwtrain.periphery._range_gradient import PROBE_SIZE
from hwtrain.periphery.input_range import PROBE, RANGE

_LEARNED = {leaf.name for leaf in BUILT_IN if leaf.in_kernel is not None}
"""The names of leaves that must become part of the kernel when stripped."""

_WITH_PLAN = "hwtrain.strip(params, plan), with plan = hwtrain.plan(analog, ...)"


def strip(params: Any, plan: Plan | None = None) -> Any:
    """Returns an analog model's parameters without the leaves that `analogize` added.

    Parameters of the model with the same names are kept; the plan tells which they are.
    Without a plan, an input range is recognised by its shape, and entries of an
    `nnx.State` by hwtrain's variable types.

    >>> layer = {"kernel": jnp.ones((4, 3)), "input_range": jnp.ones((1, 1)),
    ...          "probe": jnp.zeros((1, 1, 6))}
    >>> [list(stripped) for stripped in strip({"hidden": layer}).values()]
    [['kernel']]

    Args:
      params: nested mappings, such as Linen's `params` or an `nnx.State`.
      plan: the plan of the model; needed for learned output scales and clip bounds,
        which become part of the kernels, and if a leaf may be the model's parameter.

    Raises:
      ValueError: without a plan, for learned output scales or clip bounds, because the
        kernels alone would compute another function; and for an entry that may be a
        leaf or a parameter of the model.
    """
    if plan is None:
        ours = _certain(params)
    else:
        ours = _planned(params, plan)
        params = _with_leaves_in_kernels(params, plan)
    return _without(params, ours) if ours else params


def _planned(params: Any, plan: Plan) -> set[str]:
    """Returns the paths of hardware leaves, by the plan."""
    present = paths.leaves(params)
    of = {local(plan, w.path): w for w in plan.weights if w.kind != "raw"}
    users = {local(plan, path) for path in plan.users}
    ours = {local(plan, path) for weight in plan.weights for path in weight.owned}
    found = ours & present.keys()
    for path in present.keys() - ours - users:
        if not may_be_leaf(path, present):
            continue
        if any(owner in of for owner in split(path)[0]):
            found.add(path)  # left there by other hardware
            continue
        raise InputError(
            f"the plan does not say whether {path!r} is a leaf of hardware or a "
            "parameter of the model: its example call does not reach it. Unite the "
            'plans: hwtrain.plan(analog, params, *example, method="...") | plan'
        )
    return found


def _certain(params: Any) -> set[str]:
    """Returns the paths of the leaves that are certainly the hardware's.

    Raises:
      ValueError: for one that may be a parameter of the model.
    """
    variables = _variables(params)
    present = paths.leaves(meta.unbox(params))
    found = set()
    for path, leaf in present.items():
        name, variable = split(path)[1], variables.get(path)
        if isinstance(variable, PartLeaf):
            raise InputError(
                f"{path} is a leaf of a user-defined part; only the plan knows how to "
                f"remove it: use {_WITH_PLAN}"
            )
        if variable is not None and name:
            ours = isinstance(variable, OUR_TYPES)
        else:
            ours = may_be_leaf(path, present) and _shows(path, name, leaf, present)
        if ours is False:
            continue
        if name in _LEARNED:
            raise InputError(
                f"{path} is learned: without it, the kernel would compute another "
                f"function. Merge it into the kernel with {_WITH_PLAN}"
            )
        if ours is None:
            raise InputError(
                f"{path} may be a leaf of hardware or a parameter of the model; only "
                f"the plan can tell: use {_WITH_PLAN}"
            )
        found.add(path)
    return found


def _variables(params: Any) -> dict[str, nnx.Variable]:
    """Returns the variables of a state by path; empty for another tree."""
    flat = nnx.to_flat_state(params) if isinstance(params, nnx.State) else ()
    named = ((paths.join(keys), variable) for keys, variable in flat)
    return {path: x for path, x in named if isinstance(x, nnx.Variable)}


def _shows(path: str, name: str, leaf: Any, present: Mapping[str, Any]) -> bool | None:
    """Whether an array is a hardware leaf; `None` if it may be the model's parameter.

    Args:
      path: its path.
      name: the name of the possible leaf.
      leaf: the array, or its shape and dtype.
      present: all parameters by path.
    """
    at = path.removesuffix(name)
    stack = _stack(present.get(f"{at}{RANGE.name}"), present.get(f"{at}{PROBE.name}"))
    if name in (RANGE.name, PROBE.name):
        return stack is not None  # there are always both
    shape, dtype = np.shape(leaf), jnp.result_type(leaf)
    if is_effective(path):
        (array,) = split(path)[0]
        same = (np.shape(present[array]), jnp.result_type(present[array]))
        return None if same == (shape, dtype) else False
    (spec,) = (spec for spec in BUILT_IN if spec.name == name)
    if dtype != spec.dtype:
        return False
    if jnp.issubdtype(dtype, jnp.integer):
        return True  # no model trains integers
    behind = len(spec.shapes(ONE)[0])
    if len(shape) < behind:
        return False
    return True if shape[: len(shape) - behind] == stack else None


def _stack(tiles: Any, probe: Any) -> tuple[int, ...] | None:
    """Returns the stack shape of an input range; `None` if it is not one."""
    if tiles is None or probe is None:
        return None
    shape, dtypes = np.shape(tiles), {jnp.result_type(x) for x in (tiles, probe)}
    fits = len(shape) >= 2 and np.shape(probe) == (*shape, PROBE_SIZE)
    return shape[:-2] if fits and dtypes == {jnp.dtype("float32")} else None


def _without(params: Any, ours: set[str], above: str = "") -> Any:
    """Returns nested mappings without leaves; mappings that become empty are kept."""
    entries = {}
    for name, entry in params.items():
        path = f"{above}{paths.join([name])}"
        if isinstance(entry, Mapping):
            entries[name] = _without(entry, ours, f"{path}/")
        elif path not in ours:
            entries[name] = entry
    return type(params)(entries)


def _with_leaves_in_kernels(params: Any, plan: Plan) -> Any:
    """Returns parameters with the effect of some leaves merged into the kernels."""
    values = paths.leaves(params)
    weights = {local(plan, weight.path): weight for weight in plan.weights}

    def value(path: str, kernel: Any) -> Any:
        weight = weights.get(path)
        if weight is None:
            return kernel
        for spec in weight.leaves():
            leaf = weight.value_of(spec, values, plan.prefix)
            if spec.in_kernel is not None and leaf is not None:
                kernel = spec.in_kernel(weight, kernel, leaf)
        return kernel

    return paths.map_leaves(value, params)
